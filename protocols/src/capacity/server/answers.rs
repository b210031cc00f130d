//! Setup requests of the last seconds and what they were answered, so that a repeat gets the same
//! answer and opens nothing.
//!
//! A repeat comes from the same address and port, and so to the same shard. Bounded: the oldest is
//! forgotten first, and then a repeat is a new request, or a replay.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;

use ringmill_engine::Nanos;

use crate::capacity::NO_TRAFFIC_TIMEOUT;
use crate::capacity::pdu::Setup;

/// Answers of one shard: a spoofed request takes one, about 200 bytes.
const ANSWERS_MAX: usize = 16_384;

type Request = [u8; Setup::LEN];
type Key = (SocketAddr, Request);

/// The name of an answer. Never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AnswerId(u64);

#[derive(Debug)]
struct Answer {
    id: AnswerId,
    /// `None` while another shard opens the test.
    response: Option<Request>,
}

/// What is known of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// Nothing.
    New,
    /// It is being answered.
    Awaited,
    /// It was answered this.
    Answered([u8; Setup::LEN]),
}

/// See the [module's page](self).
#[derive(Debug, Default)]
pub(super) struct Answers {
    answers: HashMap<Key, Answer>,
    /// In the order of their coming, with the time when they are forgotten.
    order: VecDeque<(Nanos, AnswerId, Key)>,
    next: u64,
}

impl Answers {
    /// Looks a request up.
    pub(super) fn find(&mut self, peer: SocketAddr, request: &Request, now: Nanos) -> Known {
        self.forget(now);
        match self.answers.get(&(peer, *request)) {
            None => Known::New,
            Some(Answer { response: None, .. }) => Known::Awaited,
            Some(Answer {
                response: Some(response),
                ..
            }) => Known::Answered(*response),
        }
    }

    /// Takes note of a request that is answered now, or awaits its answer.
    pub(super) fn insert(
        &mut self,
        peer: SocketAddr,
        request: &Request,
        response: Option<Request>,
        now: Nanos,
    ) -> AnswerId {
        let id = AnswerId(self.next);
        self.next += 1;
        let key = (peer, *request);
        self.order.push_back((now + NO_TRAFFIC_TIMEOUT, id, key));
        self.answers.insert(key, Answer { id, response });
        if self.order.len() > ANSWERS_MAX {
            self.forget_oldest();
        }
        id
    }

    /// The answer has come.
    pub(super) fn set(&mut self, peer: SocketAddr, request: &Request, id: AnswerId, is: &Request) {
        if let Some(answer) = self.answers.get_mut(&(peer, *request))
            && answer.id == id
        {
            answer.response = Some(*is);
        }
    }

    fn forget(&mut self, now: Nanos) {
        while self.order.front().is_some_and(|(until, ..)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, id, key)) = self.order.pop_front()
            && self.answers.get(&key).is_some_and(|answer| answer.id == id)
        {
            self.answers.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Nanos = 1_000_000_000;

    #[test]
    fn a_repeat_is_known_for_three_seconds_and_by_all_of_it() {
        let mut answers = Answers::default();
        let peer = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let (one, other, response) = ([1; Setup::LEN], [2; Setup::LEN], [3; Setup::LEN]);
        let id = answers.insert(peer(1), &one, None, 0);
        assert_eq!(answers.find(peer(1), &one, 1), Known::Awaited);
        answers.set(peer(1), &one, id, &response);
        for (name, from, request, now, known) in [
            ("a repeat", 1, one, 1, Known::Answered(response)),
            ("from another port", 2, one, 1, Known::New),
            ("another request", 1, other, 1, Known::New),
            ("too late", 1, one, 3 * SECOND, Known::New),
        ] {
            assert_eq!(answers.find(peer(from), &request, now), known, "{name}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        let mut answers = Answers::default();
        let request = |number: u32| {
            let mut request = [0; Setup::LEN];
            request[..4].copy_from_slice(&number.to_be_bytes());
            request
        };
        let peer = SocketAddr::from(([192, 0, 2, 1], 1));
        let count = ANSWERS_MAX as u32 + 100;
        for number in 0..count {
            answers.insert(peer, &request(number), Some(request(number)), 0);
        }
        assert_eq!(answers.answers.len(), ANSWERS_MAX);
        assert_eq!(answers.order.len(), ANSWERS_MAX);
        assert_eq!(answers.find(peer, &request(0), 0), Known::New);
        assert_ne!(answers.find(peer, &request(count - 1), 0), Known::New);
    }
}
