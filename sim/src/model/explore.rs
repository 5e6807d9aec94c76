//! Breadth-first search through every state that a model can reach, and the shortest way to a state that must not be.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

/// A model: a state to begin with, what can happen in each, and what must never be.
pub(crate) trait Model {
    /// Small, and equal exactly when the future is.
    type State: Copy + Eq + Hash + fmt::Debug;

    /// Returns where everything begins.
    fn start(&self) -> Self::State;

    /// Tells everything that can happen in a state: in words, and what becomes of it.
    fn steps(&self, state: &Self::State, then: &mut dyn FnMut(Step, Self::State));

    /// Returns what is violated in a state; nothing when all is well.
    fn violation(&self, state: &Self::State) -> Option<String>;

    /// Returns the one of all states that differ only by the names of like members.
    fn canonical(&self, state: Self::State) -> Self::State {
        state
    }
}

/// What happened, to be put into words only for a counterexample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// The sentence, with `{a}`, `{b}` and `{n}` for the names and the number.
    pub(crate) says: &'static str,
    pub(crate) a: u8,
    pub(crate) b: u8,
    pub(crate) n: u8,
}

impl Step {
    /// Makes a step that is about these two and a number.
    pub(crate) const fn new(says: &'static str, a: usize, b: usize, n: u8) -> Self {
        Self { says, a: a as u8, b: b as u8, n }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HOLDERS: [&str; 4] = ["A", "B", "C", "D"];
        let holder = HOLDERS.get(usize::from(self.a)).unwrap_or(&"?");
        let text = self.says.replace("{a}", holder).replace("{b}", &format!("v{}", self.b));
        f.write_str(&text.replace("{n}", &self.n.to_string()))
    }
}

/// What a search found.
#[derive(Clone, Debug)]
pub(crate) struct Explored {
    /// Different states, those that differ by names counted once.
    pub(crate) states: usize,
    /// Ways from one state to another.
    pub(crate) transitions: u64,
    /// Steps to the state that is farthest away, or to the violation.
    pub(crate) depth: usize,
    /// Whether every state was looked at.
    pub(crate) is_complete: bool,
    /// The shortest way to a violation, and what it is.
    pub(crate) counterexample: Option<Counterexample>,
    pub(crate) took: Duration,
}

impl fmt::Display for Explored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how_far = if self.is_complete { "complete" } else { "not all" };
        let (states, transitions, depth) = (self.states, self.transitions, self.depth);
        let took = self.took.as_secs_f64();
        write!(f, "{states} states, {transitions} transitions, {depth} deep, {how_far}, {took:.2} s")
    }
}

/// The shortest way to a violation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counterexample {
    pub(crate) steps: Vec<String>,
    pub(crate) violation: String,
}

impl fmt::Display for Counterexample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (nth, step) in self.steps.iter().enumerate() {
            writeln!(f, "{:4}. {step}", nth + 1)?;
        }
        write!(f, "      VIOLATION {}", self.violation)
    }
}

/// Searches from the start until every state was looked at, one violates something, or there are too many.
pub(crate) fn explore<M: Model>(model: &M, states_max: usize) -> Explored {
    let started = Instant::now();
    let start = model.canonical(model.start());
    let mut seen = Seen::default();
    seen.insert(start, 0);
    let (mut next, mut level_end, mut depth, mut transitions) = (0, 1, 0, 0);
    let mut violating = model.violation(&start).map(|_| 0);
    while next < seen.nodes.len() && violating.is_none() && seen.nodes.len() <= states_max {
        if next == level_end {
            depth += 1;
            level_end = seen.nodes.len();
        }
        let state = seen.nodes[next].state;
        model.steps(&state, &mut |_, reached| {
            transitions += 1;
            let reached = model.canonical(reached);
            if seen.insert(reached, next) && violating.is_none() && model.violation(&reached).is_some() {
                violating = Some(seen.nodes.len() - 1);
            }
        });
        next += 1;
    }
    let is_complete = next == seen.nodes.len();
    let counterexample = violating.map(|at| retell(model, &seen.way_to(at)));
    if counterexample.is_some() {
        depth += 1;
    }
    let states = seen.nodes.len();
    Explored { states, transitions, depth, is_complete, counterexample, took: started.elapsed() }
}

/// Walks a way again without exchanging names, so that everybody keeps theirs throughout the story.
fn retell<M: Model>(model: &M, way: &[M::State]) -> Counterexample {
    let mut state = model.start();
    let mut steps = Vec::new();
    for wanted in &way[1..] {
        let mut found = None;
        model.steps(&state, &mut |step, reached| {
            if found.is_none() && model.canonical(reached) == *wanted {
                found = Some((step, reached));
            }
        });
        let Some((step, reached)) = found else { break };
        steps.push(step.to_string());
        state = reached;
    }
    Counterexample { steps, violation: model.violation(&state).unwrap_or_else(|| format!("{state:?}")) }
}

/// The states found so far, in the order they were found, each with where it was found from.
#[derive(Debug)]
struct Seen<S> {
    nodes: Vec<Node<S>>,
    /// An open hash table of positions in `nodes`, one more than each; zero is free.
    table: Vec<u32>,
}

#[derive(Debug)]
struct Node<S> {
    state: S,
    from: u32,
}

impl<S> Default for Seen<S> {
    fn default() -> Self {
        Self { nodes: Vec::new(), table: vec![0; 1 << 10] }
    }
}

impl<S: Copy + Eq + Hash> Seen<S> {
    /// Adds a state and returns whether it is new.
    fn insert(&mut self, state: S, from: usize) -> bool {
        if self.nodes.len() * 2 >= self.table.len() {
            self.grow();
        }
        let slot = self.slot_of(&state);
        if self.table[slot] != 0 {
            return false;
        }
        self.nodes.push(Node { state, from: from as u32 });
        self.table[slot] = self.nodes.len() as u32;
        true
    }

    /// Returns where a state stands in the table, or should.
    fn slot_of(&self, state: &S) -> usize {
        let mut hasher = Mixer::default();
        state.hash(&mut hasher);
        let mask = self.table.len() - 1;
        let mut slot = hasher.finish() as usize & mask;
        while self.table[slot] != 0 && self.nodes[self.table[slot] as usize - 1].state != *state {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.table = vec![0; self.table.len() * 4];
        for at in 0..self.nodes.len() {
            let slot = self.slot_of(&self.nodes[at].state);
            self.table[slot] = at as u32 + 1;
        }
    }

    fn way_to(&self, mut at: usize) -> Vec<S> {
        let mut way = vec![self.nodes[at].state];
        while at != 0 {
            at = self.nodes[at].from as usize;
            way.push(self.nodes[at].state);
        }
        way.reverse();
        way
    }
}

/// A quick hash that is the same on every machine.
#[derive(Debug, Default)]
struct Mixer(u64);

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
    }

    fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..part.len()].copy_from_slice(part);
            self.write_u64(u64::from_le_bytes(word));
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(23) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two counters that are alike; both at the top is forbidden when `forbids`.
    struct Counters {
        top: u8,
        forbids: bool,
    }

    impl Model for Counters {
        type State = [u8; 2];

        fn start(&self) -> [u8; 2] {
            [0, 0]
        }

        fn steps(&self, state: &[u8; 2], then: &mut dyn FnMut(Step, [u8; 2])) {
            for which in 0..2 {
                if state[which] < self.top {
                    let mut next = *state;
                    next[which] += 1;
                    then(Step::new("{a} counts to {n}", which, 0, next[which]), next);
                }
            }
        }

        fn violation(&self, state: &[u8; 2]) -> Option<String> {
            (self.forbids && *state == [self.top; 2]).then(|| "both are at the top".into())
        }

        fn canonical(&self, mut state: [u8; 2]) -> [u8; 2] {
            state.sort_unstable();
            state
        }
    }

    #[test]
    fn every_state_is_looked_at_once_and_like_states_count_once() {
        let explored = explore(&Counters { top: 9, forbids: false }, 1_000);
        assert!(explored.is_complete && explored.counterexample.is_none());
        assert_eq!((explored.states, explored.depth), (55, 18));
    }

    #[test]
    fn the_shortest_way_to_a_violation_is_told_with_names_that_stay() {
        let explored = explore(&Counters { top: 1, forbids: true }, 1_000);
        let counterexample = explored.counterexample.expect("it is reachable");
        assert_eq!(counterexample.steps, ["A counts to 1", "B counts to 1"]);
        assert_eq!(counterexample.violation, "both are at the top");
    }

    #[test]
    fn a_search_that_is_cut_short_says_so() {
        let explored = explore(&Counters { top: 200, forbids: false }, 100);
        assert!(!explored.is_complete);
    }
}
