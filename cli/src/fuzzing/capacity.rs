//! Bodies for the PDUs of the capacity test, each in both versions. The data is one datagram.

use std::fmt::Debug;

use ringmill_protocols::capacity::keys::{KeyFile, KeyRing, SharedKey};
use ringmill_protocols::capacity::parameters::{ServerLimits, TestParameters};
use ringmill_protocols::capacity::pdu::{
    Activation, DecodeError, Load, Null, Pdu, Setup, Status, StatusChecksum, Version,
};
use ringmill_protocols::capacity::rates::{RateTable, Size, Variant};
use ringmill_protocols::capacity::setup::{ServerSettings, examine};
use ringmill_protocols::capacity::time::WallTime;

use super::explains;

const VERSIONS: [Version; 2] = [Version::V11, Version::V20];

/// What was read, after a refusal was made to explain itself.
fn read<T>(result: Result<T, DecodeError>) -> Option<T> {
    result.inspect_err(explains).ok()
}

/// What was read is written as the same bytes.
fn written(data: &[u8], pdu: &impl Debug, encode: impl FnOnce(&mut [u8]) -> usize) {
    let mut bytes = [0xEE; Status::LEN_MAX];
    let len = encode(&mut bytes);
    assert_eq!(&bytes[..len], data, "{pdu:?}");
}

/// Setup requests and responses; a request is answered by servers with and without keys.
pub fn setup(data: &[u8]) {
    if let Some(setup) = read(Setup::decode_response(data)) {
        written(data, &setup, |bytes| setup.encode(bytes));
        assert!(Setup::decode_request(data).is_err(), "both at once");
    }
    let Some(setup) = read(Setup::decode_request(data)) else {
        return;
    };
    written(data, &setup, |bytes| setup.encode(bytes));
    let keys = KeyRing {
        command_line: SharedKey::new("topsecret").ok(),
        file: None,
    };
    for (keys, fill_check_sum) in [(KeyRing::default(), false), (keys, true)] {
        let settings = ServerSettings {
            keys,
            fill_check_sum,
            ..ServerSettings::default()
        };
        let wall = WallTime {
            sec: setup.auth.auth_unix_time,
            nsec: 0,
        };
        let examined = examine(data, &settings, wall).expect("it was read");
        let mut bytes = [0; Setup::LEN];
        if examined.verdict.is_ok() {
            let (_, accepted) = examined.accept(1, wall, &mut bytes);
            let mut null = [0; Null::LEN];
            if let Some(len) = accepted.null_request(wall, &mut null) {
                Null::decode(&null[..len]).expect("ours");
            }
        } else {
            examined.reject(wall, &mut bytes);
        }
        Setup::decode_response(&bytes).expect("an answer is a response");
        assert!(examine(&bytes, &settings, wall).is_err(), "and no request");
    }
}

/// Null requests.
pub fn null(data: &[u8]) {
    if let Some(null) = read(Null::decode(data)) {
        assert_eq!(Pdu::of(data), Some(Pdu::Null));
        written(data, &null, |bytes| null.encode(bytes));
    }
}

/// Activation requests and responses: what is asked for becomes legal.
pub fn activation(data: &[u8]) {
    for version in VERSIONS {
        if let Some(response) = read(Activation::decode_response(data, version)) {
            written(data, &response, |bytes| response.encode(version, bytes));
        }
        let Some(request) = read(Activation::decode_request(data, version)) else {
            continue;
        };
        written(data, &request, |bytes| request.encode(version, bytes));
        let limits = ServerLimits::default();
        let (parameters, response) = TestParameters::corrected(&request, version, &limits);
        let table = RateTable::new(Variant::default());
        assert!(table.get(parameters.first_row()).is_some());
        assert_eq!(
            TestParameters::accepted(&response, version, &parameters),
            Ok(parameters),
            "a client takes what a server answers"
        );
    }
}

/// Load PDUs, whole and cut to the header.
pub fn load(data: &[u8]) {
    let whole = read(Load::decode(data, data.len()));
    if let Some(load) = whole {
        let header = &data[..Load::HEADER_LEN];
        written(header, &load, |bytes| load.encode(bytes));
        assert_eq!(Load::decode(header, data.len()), Ok(load));
    }
}

/// Status PDUs.
pub fn status(data: &[u8]) {
    for version in VERSIONS {
        let strict = read(Status::decode(data, version, StatusChecksum::Strict));
        let Some(status) = read(Status::decode(data, version, StatusChecksum::Lenient)) else {
            assert_eq!(strict, None, "lenient takes all that strict takes");
            continue;
        };
        // What is reserved is not kept, so it is the fields that are the same.
        let mut bytes = [0xEE; Status::LEN_MAX];
        let len = status.encode(version, &mut bytes);
        assert_eq!(len, data.len());
        Status::fill_check_sum(version, &mut bytes);
        let mut again = Status::decode(&bytes[..len], version, StatusChecksum::Strict)
            .expect("what was written is readable");
        again.check_sum = status.check_sum;
        assert_eq!(again, status);
        for size in [
            status.rate.udp_payload1,
            status.rate.udp_payload2,
            status.rate.udp_addon2,
        ] {
            let size = Size::of(size, true);
            assert!(size.min <= size.max);
        }
        let _ = status.spdu_time.ms_since(WallTime::NONE);
    }
}

/// Key files: what is refused is explained, and never by showing a key.
pub fn keys(data: &[u8]) {
    match KeyFile::parse(data) {
        Ok(file) => assert!((1..=256).contains(&file.entries())),
        Err(error) => {
            explains(&error);
            assert!(error.to_string().len() < 100);
        }
    }
}
