//! What is due, in the order of its time; of what is due at the same time, in the order in which it was asked for.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A queue in virtual time.
///
/// The heap orders places, not things: what is due is as large as a frame, and sifting would move it about.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    places: Vec<Option<T>>,
    free: Vec<u32>,
    count: u64,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), places: Vec::new(), free: Vec::new(), count: 0 }
    }
}

impl<T> Queue<T> {
    /// Puts something in that is due at that time.
    pub(crate) fn push(&mut self, time: u64, due: T) {
        self.count += 1;
        let place = match self.free.pop() {
            Some(place) => {
                self.places[place as usize] = Some(due);
                place
            }
            None => {
                self.places.push(Some(due));
                u32::try_from(self.places.len() - 1).expect("fewer than four billion things are due at once")
            }
        };
        self.heap.push(Reverse((time, self.count, place)));
    }

    /// Takes the first thing that is due at that time or before.
    pub(crate) fn pop_by(&mut self, time: u64) -> Option<(u64, T)> {
        let Reverse((due, _, place)) = *self.heap.peek().filter(|Reverse((due, ..))| *due <= time)?;
        self.heap.pop();
        self.free.push(place);
        Some((due, self.places[place as usize].take()?))
    }

    /// Returns how many things were ever put in: a number of its own for whatever is being put in next.
    pub(crate) const fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_due_comes_in_order_of_time_and_then_of_asking() {
        let mut queue = Queue::default();
        for (time, name) in [(3, "c"), (1, "a"), (3, "d"), (2, "b"), (9, "e")] {
            queue.push(time, name);
        }
        assert_eq!(queue.pop_by(1), Some((1, "a")));
        assert_eq!(queue.pop_by(1), None);
        queue.push(3, "f");
        let rest: Vec<_> = std::iter::from_fn(|| queue.pop_by(3)).map(|(_, name)| name).collect();
        assert_eq!(rest, ["b", "c", "d", "f"]);
        assert_eq!((queue.count(), queue.pop_by(u64::MAX)), (6, Some((9, "e"))));
    }
}
