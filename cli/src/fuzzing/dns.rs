//! The bodies for DNS messages (the data is one message, or what came on a stream) and for what a
//! load is told: rate plans and names.

use ringmill_protocols::dns::AnswerTemplate;
use ringmill_protocols::dns::frames::Frames;
use ringmill_protocols::dns::message::{HEADER_LEN, Header, TYPE_A, is_about, question};
use ringmill_protocols::load::RatePlan;

use crate::commands::load::parse_names;

/// An answer is about its query and is never answered; a stream gives the same messages however it
/// is cut.
pub fn dns(data: &[u8]) {
    let template = AnswerTemplate::of(
        &[
            "192.0.2.1".parse().expect("an address"),
            "2001:db8::1".parse().expect("an address"),
        ],
        60,
    );
    let mut out = vec![0; data.len() + 64];
    if let Some(len) = template.answer(data, &mut out) {
        let answer = &out[..len];
        let header = Header::read(answer).expect("an answer has a header");
        let asked = question(data).expect("what was answered has a question");
        assert!(header.is_answer() && len <= HEADER_LEN + asked.bytes.len() + 28);
        assert!(is_about(answer, &header, asked.bytes));
        assert_eq!(Header::read(data).map(|query| query.id), Some(header.id));
        assert_eq!(
            template.answer(answer, &mut vec![0; len + 64]),
            None,
            "an answer is answered"
        );
    }
    if let Some(header) = Header::read(data) {
        let asked = question(data).map_or(&[][..], |question| question.bytes);
        let _ = (
            is_about(data, &header, asked),
            header.response_code(),
            header.opcode(),
        );
    }
    let cut = data
        .first()
        .map_or(0, |first| usize::from(*first) % data.len());
    let read = |parts: &[&[u8]]| {
        let (mut frames, mut messages) = (Frames::default(), Vec::new());
        for part in parts {
            frames.read(part, |message| {
                messages.push(message.to_vec());
                true
            });
        }
        messages
    };
    assert_eq!(read(&[data]), read(&[&data[..cut], &data[cut..]]));
}

/// A plan never counts backwards, has no rate beyond its own highest, and its messages leave within
/// it; names are read or refused.
pub fn rate_plan(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Err(error) = parse_names(text, TYPE_A) {
        assert!(!error.to_string().is_empty());
    }
    let plans = [
        RatePlan::parse_steps(text),
        RatePlan::parse_slopes(1_000.0, text),
    ];
    for plan in plans.into_iter().flatten() {
        let length = plan.length().expect("a plan that was read has an end");
        let (total, rate_max) = (plan.messages_until(length), plan.rate_max());
        assert!(total.is_finite() && rate_max.is_finite());
        // What a nanosecond is worth, and the last digits of large sums.
        let slack = rate_max * 2e-9 + total.abs() * 1e-9;
        let (mut before, mut last_at, mut from) = (0.0, 0, 0);
        for part in 0..=PARTS {
            let at = (u128::from(length) * u128::from(part) / u128::from(PARTS)) as u64;
            let messages = plan.messages_until(at);
            assert!(messages >= before - slack, "backwards at {at} ns");
            assert!((0.0..=rate_max * (1.0 + 1e-9)).contains(&plan.rate_at(at)));
            let messages = messages.max(before);
            before = messages;
            if let Some(due) = plan.time_of(messages, &mut from) {
                assert!(due < length && due >= last_at, "{due} ns of {length} ns");
                assert!(plan.messages_until(due) <= messages + slack);
                last_at = due;
            }
        }
    }
}

/// Moments of a plan that are looked at.
const PARTS: u64 = 16;
