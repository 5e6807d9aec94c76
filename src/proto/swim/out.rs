//! What the prober wants done, and why a belief changed.

use std::time::Duration;

use super::SwimFrame;
use crate::proto::identity::MemberId;
use crate::proto::liveness::Liveness;

/// What the prober asks its caller to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwimOut {
    /// Send a frame.
    Send {
        /// To whom.
        to: MemberId,
        /// What.
        frame: SwimFrame,
        /// Whether it goes on a stream; a datagram otherwise.
        reliable: bool,
    },
    /// Publish that we suspect a member: the gossip key `sus.<accused>` = incarnation.
    PublishSuspicion {
        /// Who got no answer to us.
        accused: MemberId,
        /// Which incarnation of it.
        incarnation: u64,
    },
    /// Withdraw that key.
    ClearSuspicion {
        /// Who is no longer suspected by us.
        accused: MemberId,
    },
    /// Save our incarnation durably, then call [`Swim::incarnation_saved`](super::Swim::incarnation_saved) and publish it.
    RaiseIncarnation {
        /// The incarnation to save.
        to: u64,
    },
    /// The belief about a member changed.
    Changed {
        /// About whom.
        member: MemberId,
        /// What was believed.
        from: Liveness,
        /// What is believed now.
        to: Liveness,
        /// Why.
        cause: Cause,
    },
}

/// Why a belief changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Something came straight from it.
    Heard,
    /// It answered a probe that we asked another member to make.
    Answered {
        /// The member that was asked.
        through: MemberId,
    },
    /// A later incarnation of it was heard of: it restarted, or refuted a suspicion.
    Incarnation(u64),
    /// It answered neither us nor those we asked to try.
    Silent {
        /// Who else tried.
        through: Vec<MemberId>,
        /// How long nothing came straight from it; none when nothing ever did.
        silence: Option<Duration>,
    },
    /// Another member suspects it.
    Accused {
        /// Which one.
        by: MemberId,
    },
    /// Those who suspected it took it back.
    Withdrawn,
    /// It said that it leaves.
    Farewell,
    /// R12: quorum came back, so everybody believed to be down gets a fresh chance.
    Reconsidered,
}

impl Cause {
    /// Returns the words for a log line, such as "no answer direct or through mgt2 for 5.2s".
    pub fn describe(&self, name: impl Fn(MemberId) -> String) -> String {
        match self {
            Self::Heard => "it was heard".to_owned(),
            Self::Answered { through } => format!("it answered {}", name(*through)),
            Self::Incarnation(incarnation) => format!("its incarnation {incarnation} was heard of"),
            Self::Silent { through, silence } => {
                let through = match through.as_slice() {
                    [] => String::new(),
                    some => format!(" or through {}", some.iter().map(|id| name(*id)).collect::<Vec<_>>().join(", ")),
                };
                let silence = match silence {
                    Some(silence) => format!(" for {}.{}s", silence.as_secs(), silence.subsec_millis() / 100),
                    None => ", ever".to_owned(),
                };
                format!("no answer direct{through}{silence}")
            }
            Self::Accused { by } => format!("{} gets no answer from it", name(*by)),
            Self::Withdrawn => "nobody suspects it any more".to_owned(),
            Self::Farewell => "it said farewell".to_owned(),
            Self::Reconsidered => "quorum came back".to_owned(),
        }
    }
}
