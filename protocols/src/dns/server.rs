//! The fixed answer: every well-formed question for an address gets the same one. For measuring
//! clients and networks; it looks nothing up and keeps nothing.
//!
//! What is no query gets no answer: silence in datagrams, a close on a stream. Answers themselves
//! are never answered, so that two servers cannot keep each other busy. Datagrams are answered only
//! as far as the [guard](crate::guard) lets them, and an answer is at most 28 bytes longer than what
//! asked for it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringmill_engine::{
    Buffer, BufferMut, Closed, Context, Datagram, ListenerId, Payload, Protocol, SocketId,
    StreamId, Transmit,
};

use super::frames::Frames;
use super::message::{CLASS_IN, HEADER_LEN, Header, TYPE_A, TYPE_AAAA, question};
use crate::guard::Guard;

const NOT_IMPLEMENTED: u8 = 4;
const REFUSED: u8 = 5;
/// Bytes that a record with a pointer to the question's name has before its data.
const RECORD_HEAD_LEN: usize = 12;
/// Bytes that an answer has beyond its question: a record with an IPv6 address.
const RECORD_LEN_MAX: usize = RECORD_HEAD_LEN + 16;
/// Bytes of the longest answer, with its length before it.
const ANSWER_LEN_MAX: usize = 2 + HEADER_LEN + 255 + 4 + RECORD_LEN_MAX;
/// Bytes of a query on a stream, at most: one with all that EDNS may add has far fewer. Who says
/// that more will come must not make this server keep it.
const QUERY_LEN_MAX: usize = 4096;

/// The records that are given as answers, encoded once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AnswerTemplate {
    a: Option<[u8; RECORD_HEAD_LEN + 4]>,
    aaaa: Option<[u8; RECORD_HEAD_LEN + 16]>,
}

impl AnswerTemplate {
    /// Answers for questions of type A and AAAA, good for `ttl_s` seconds. A question of a type
    /// without an address gets an answer without a record.
    #[must_use]
    pub fn new(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>, ttl_s: u32) -> Self {
        let head = |kind: u16, len: u16| {
            let mut head = [0; RECORD_HEAD_LEN];
            // A pointer to the name of the question, right after the header (RFC 1035 §4.1.4).
            head[..2].copy_from_slice(&(0xc000 | HEADER_LEN as u16).to_be_bytes());
            head[2..4].copy_from_slice(&kind.to_be_bytes());
            head[4..6].copy_from_slice(&CLASS_IN.to_be_bytes());
            head[6..10].copy_from_slice(&ttl_s.to_be_bytes());
            head[10..].copy_from_slice(&len.to_be_bytes());
            head
        };
        Self {
            a: ipv4.map(|address| {
                let mut record = [0; RECORD_HEAD_LEN + 4];
                record[..RECORD_HEAD_LEN].copy_from_slice(&head(TYPE_A, 4));
                record[RECORD_HEAD_LEN..].copy_from_slice(&address.octets());
                record
            }),
            aaaa: ipv6.map(|address| {
                let mut record = [0; RECORD_HEAD_LEN + 16];
                record[..RECORD_HEAD_LEN].copy_from_slice(&head(TYPE_AAAA, 16));
                record[RECORD_HEAD_LEN..].copy_from_slice(&address.octets());
                record
            }),
        }
    }

    /// Answers for the addresses of a list: the first of each kind.
    #[must_use]
    pub fn of(addresses: &[IpAddr], ttl_s: u32) -> Self {
        let ipv4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let ipv6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        Self::new(ipv4, ipv6, ttl_s)
    }

    /// Writes the answer to a query to the beginning of `out`, which has room for the question and
    /// [28 more bytes](RECORD_LEN_MAX). How long it is; `None` for what is no query.
    #[inline]
    pub fn answer(&self, query: &[u8], out: &mut [u8]) -> Option<usize> {
        let header = Header::read(query)?;
        if header.is_answer() || header.questions != 1 {
            return None;
        }
        let question = question(query)?;
        let record: &[u8] = match (question.class, question.kind) {
            (CLASS_IN, TYPE_A) => self.a.as_ref().map_or(&[], |record| record),
            (CLASS_IN, TYPE_AAAA) => self.aaaa.as_ref().map_or(&[], |record| record),
            _ => &[],
        };
        let (code, record) = match (header.opcode(), question.class) {
            (0, CLASS_IN) => (0, record),
            (0, _) => (REFUSED, &[][..]),
            _ => (NOT_IMPLEMENTED, &[][..]),
        };
        let after_header = HEADER_LEN + question.bytes.len();
        let len = after_header + record.len();
        let out = out.get_mut(..len)?;
        out[..2].copy_from_slice(&query[..2]);
        // An answer, authoritative, with the opcode and the wish for recursion of the query.
        out[2] = 0x84 | (query[2] & 0x79);
        out[3] = code;
        out[4..HEADER_LEN].copy_from_slice(&[0, 1, 0, u8::from(!record.is_empty()), 0, 0, 0, 0]);
        out[HEADER_LEN..after_header].copy_from_slice(question.bytes);
        out[after_header..].copy_from_slice(record);
        Some(len)
    }
}

/// The service on one shard.
#[derive(Debug)]
pub struct FixedAnswer {
    template: AnswerTemplate,
    guard: Guard,
    /// Messages that came in part, by [`StreamId::index`].
    frames: Vec<Frames>,
    /// Answers of this turn, to be sent at once; it keeps its memory.
    out: Vec<u8>,
}

impl FixedAnswer {
    /// A service with these answers, for the datagrams that the guard admits.
    #[must_use]
    pub fn new(template: AnswerTemplate, guard: Guard) -> Self {
        Self {
            template,
            guard,
            frames: Vec::new(),
            out: Vec::new(),
        }
    }

    /// Answers the datagrams of one received buffer into `out`, which serves a whole batch. Equal
    /// answers next to each other leave as one send.
    fn answer_datagram(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        datagram: &Datagram,
        out: &mut Option<BufferMut>,
    ) {
        let send = |ctx: &mut Context<'_, ()>, data: Payload, stride: usize| {
            let transmit = Transmit {
                peer: Some(datagram.peer),
                source: datagram.local,
                ecn: 0,
                stride: stride as u16,
                data,
            };
            // Full: the kernel does not take what we have, so these are lost, as datagrams may be;
            // the engine counts them in `send_full`.
            let _ = ctx.send_datagrams(socket, transmit);
        };
        let at_once =
            ctx.segments_max(ANSWER_LEN_MAX.min(usize::from(datagram.stride) + RECORD_LEN_MAX));
        // Equal answers at the front of `out`: bytes of each, and of all.
        let (mut stride, mut filled) = (0, 0);
        for query in datagram.iter() {
            let room = out.as_ref().map_or(0, |buffer| buffer.len());
            if room < filled + ANSWER_LEN_MAX {
                if let Some(buffer) = out.as_mut().filter(|_| filled > 0) {
                    send(ctx, Payload::from(buffer.split_front(filled)), stride);
                }
                filled = 0;
                *out = ctx.fill();
            }
            let Some(buffer) = out else {
                // All buffers are in use.
                self.out.resize(ANSWER_LEN_MAX, 0);
                if let Some(len) = self.template.answer(query, &mut self.out) {
                    send(ctx, Payload::from(self.out[..len].to_vec()), len);
                }
                continue;
            };
            let Some(len) = self.template.answer(query, &mut buffer[filled..]) else {
                continue;
            };
            if filled > 0 && (len != stride || filled / stride == at_once) {
                send(ctx, Payload::from(buffer.split_front(filled)), stride);
                filled = 0;
            }
            stride = len;
            filled += len;
        }
        if let Some(buffer) = out.as_mut().filter(|_| filled > 0) {
            send(ctx, Payload::from(buffer.split_front(filled)), stride);
        }
    }
}

impl Protocol for FixedAnswer {
    type Message = ();

    fn start(&mut self, ctx: &mut Context<'_, ()>) {
        for (_, socket) in ctx.bound_sockets() {
            if let Some(local) = ctx.local_address(socket) {
                self.guard.own_ports().add(local.port());
            }
        }
    }

    fn accepted(
        &mut self,
        _ctx: &mut Context<'_, ()>,
        stream: StreamId,
        _listener: ListenerId,
        _peer: Option<std::net::SocketAddr>,
    ) {
        if self.frames.len() <= stream.index() {
            self.frames.resize_with(stream.index() + 1, Frames::default);
        }
    }

    fn received(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId, data: Buffer) {
        let (template, out) = (&self.template, &mut self.out);
        out.clear();
        let mut well_formed = true;
        let frames = &mut self.frames[stream.index()];
        frames.read(&data, |query| {
            let begin = out.len();
            out.resize(begin + ANSWER_LEN_MAX, 0);
            let answer = template.answer(query, &mut out[begin + 2..]);
            let len = answer.map_or(0, |len| {
                out[begin..begin + 2].copy_from_slice(&(len as u16).to_be_bytes());
                2 + len
            });
            out.truncate(begin + len);
            well_formed = answer.is_some();
            well_formed
        });
        well_formed &= frames.wanted() <= QUERY_LEN_MAX;
        let len = out.len();
        // A copy of the right size: it may wait on a slow peer for long.
        if ctx.send(stream, out.to_vec()).is_full() || !well_formed {
            // The stream was paused in time for its own bound, so the whole shard's is hit, or the
            // peer does not speak DNS: what it asked before is answered.
            ctx.close(stream);
            return;
        }
        let queued_bytes = ctx.queued_bytes(stream);
        // As many answers again must fit.
        if queued_bytes + len > ctx.limits().stream_queue_bytes_max / 2 {
            ctx.pause(stream);
            if !ctx.notify_when_drained(stream) {
                ctx.resume(stream);
            }
        }
    }

    fn drained(&mut self, ctx: &mut Context<'_, ()>, stream: StreamId) {
        ctx.resume(stream);
    }

    fn closed(&mut self, _ctx: &mut Context<'_, ()>, stream: StreamId, _reason: Closed) {
        if let Some(frames) = self.frames.get_mut(stream.index()) {
            *frames = Frames::default();
        }
    }

    fn datagrams(
        &mut self,
        ctx: &mut Context<'_, ()>,
        socket: SocketId,
        batch: &mut Vec<Datagram>,
    ) {
        // Known for each datagram on a wildcard socket, else the same for all.
        let bound = ctx
            .local_address(socket)
            .map(|local| local.ip())
            .filter(|ip| !ip.is_unspecified());
        let mut out = None;
        for mut datagram in batch.drain(..) {
            let count = datagram.count();
            datagram.local = datagram.local.or(bound);
            let admitted = self
                .guard
                .admit(ctx.now(), datagram.peer, datagram.local, count);
            if admitted == 0 {
                continue;
            }
            if admitted < count {
                datagram
                    .data
                    .truncate(admitted * usize::from(datagram.stride));
            }
            self.answer_datagram(ctx, socket, &datagram, &mut out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::message::{Name, write_query};

    const OUT: usize = 400;

    fn template() -> AnswerTemplate {
        AnswerTemplate::of(
            &["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            60,
        )
    }

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut query = Vec::new();
        write_query(&mut query, &Name::parse(name).unwrap(), kind);
        query[..2].copy_from_slice(&[0xab, 0xcd]);
        query
    }

    fn answer(query: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0xee; OUT];
        let len = template().answer(query, &mut out)?;
        Some(out[..len].to_vec())
    }

    #[test]
    fn an_answer_is_the_question_and_the_address() {
        let question = query("example.com", TYPE_A);
        let expected = [
            &b"\xab\xcd\x85\0\0\x01\0\x01\0\0\0\0"[..],
            &question[HEADER_LEN..],
            b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xc0\0\x02\x07",
        ];
        assert_eq!(answer(&question), Some(expected.concat()));
        let long = answer(&query("example.com", TYPE_AAAA)).unwrap();
        assert_eq!(long.len(), question.len() + RECORD_LEN_MAX);
        assert!(long.ends_with(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets()));
    }

    #[test]
    fn what_has_no_address_here_is_answered_without() {
        let chaos = [&query("example.com", TYPE_A)[..27], &[0, 3]].concat();
        let mut update = query("example.com", TYPE_A);
        update[2] |= 5 << 3;
        let mut extended = query("example.com", TYPE_A);
        extended[11] = 1;
        extended.extend_from_slice(&[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
        for (query, code, records, why) in [
            (query("example.com", 16), 0, 0, "TXT"),
            (chaos, REFUSED, 0, "another class"),
            (update, NOT_IMPLEMENTED, 0, "another opcode"),
            (extended, 0, 1, "EDNS is passed over"),
            (query(".", TYPE_A), 0, 1, "the root"),
        ] {
            let answer = answer(&query).expect(why);
            assert_eq!((answer[3], answer[7]), (code, records), "{why}");
            assert_eq!(answer[2] & 0x80, 0x80, "{why}");
        }
        let nothing = AnswerTemplate::new(None, None, 0);
        let len = nothing.answer(&query("a", TYPE_A), &mut [0; OUT]);
        assert_eq!(len, Some(HEADER_LEN + 7));
    }

    #[test]
    fn what_is_no_query_gets_no_answer() {
        let whole = query("example.com", TYPE_A);
        for len in 0..whole.len() {
            assert_eq!(answer(&whole[..len]), None, "{len} bytes");
        }
        let changed = |at: usize, value: u8| {
            let mut query = whole.clone();
            query[at] = value;
            query
        };
        for (query, why) in [
            (changed(2, 0x81), "an answer"),
            (changed(5, 0), "no question"),
            (changed(5, 2), "two questions"),
            (changed(12, 0xc0), "a pointer"),
        ] {
            assert_eq!(answer(&query), None, "{why}");
        }
    }
}
