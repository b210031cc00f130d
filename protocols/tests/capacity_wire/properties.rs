//! What holds for any bytes: reading never panics, and what is written is read as the same.

use proptest::prelude::*;
use ringmill_protocols::capacity::keys::KeyFile;
use ringmill_protocols::capacity::parameters::{ServerLimits, TestParameters};
use ringmill_protocols::capacity::pdu::{
    Activation, DecodeError, Load, Null, Pdu, Setup, Status, StatusChecksum, Version,
};
use ringmill_protocols::capacity::rates::{EXTENDED_ROW_LAST, RateTable, Size, Variant};
use ringmill_protocols::capacity::setup::{ServerSettings, examine};
use ringmill_protocols::capacity::time::WallTime;

const VERSIONS: [Version; 2] = [Version::V11, Version::V20];

/// Bytes of a length with the id of a PDU and, as often as not, legal commands, flags and checksum.
fn datagram(pdu: Pdu, len: usize) -> impl Strategy<Value = Vec<u8>> {
    let bytes = prop::collection::vec(any::<u8>(), len);
    (bytes, any::<[bool; 3]>(), 0..4_u8).prop_map(move |(mut bytes, legal, command)| {
        bytes[..2].copy_from_slice(&pdu.id().to_be_bytes());
        let at = match pdu {
            Pdu::Setup => 8,
            Pdu::Null | Pdu::Activation => 4,
            Pdu::Load | Pdu::Status => 2,
        };
        if legal[0] {
            bytes[at] = command;
        }
        if legal[1] {
            bytes[at + 1] = command & 1;
        }
        if legal[2] {
            let check_sum_at = if pdu == Pdu::Status && len == 168 {
                146
            } else {
                len - 2
            };
            bytes[check_sum_at..check_sum_at + 2].fill(0);
        }
        bytes
    })
}

fn version() -> impl Strategy<Value = Version> {
    prop::sample::select(VERSIONS.to_vec())
}

proptest! {
    #[test]
    fn any_bytes_can_be_read(bytes in prop::collection::vec(any::<u8>(), 0..300), real: u16) {
        let _ = Pdu::of(&bytes);
        let _ = Setup::decode_request(&bytes);
        let _ = Setup::decode_response(&bytes);
        let _ = Null::decode(&bytes);
        let _ = Load::decode(&bytes, real.into());
        for version in VERSIONS {
            let _ = Activation::decode_request(&bytes, version);
            let _ = Activation::decode_response(&bytes, version);
            for rule in [StatusChecksum::Lenient, StatusChecksum::Strict] {
                let _ = Status::decode(&bytes, version, rule);
            }
        }
        let _ = KeyFile::parse(&bytes);
        let _ = examine(&bytes, &ServerSettings::default(), WallTime::NONE);
    }

    #[test]
    fn a_setup_pdu_is_written_as_it_was_read(bytes in datagram(Pdu::Setup, Setup::LEN)) {
        for read in [Setup::decode_request(&bytes), Setup::decode_response(&bytes)] {
            let Ok(setup) = read else { continue };
            let mut written = [0xEE; Setup::LEN];
            prop_assert_eq!(setup.encode(&mut written), Setup::LEN);
            prop_assert_eq!(&written[..], &bytes[..]);
        }
    }

    #[test]
    fn a_null_request_is_written_as_it_was_read(bytes in datagram(Pdu::Null, Null::LEN)) {
        if let Ok(null) = Null::decode(&bytes) {
            let mut written = [0xEE; Null::LEN];
            prop_assert_eq!(null.encode(&mut written), Null::LEN);
            prop_assert_eq!(&written[..], &bytes[..]);
        }
    }

    #[test]
    fn an_activation_pdu_is_written_as_it_was_read(
        (version, bytes) in version().prop_flat_map(|version| {
            (Just(version), datagram(Pdu::Activation, Activation::len(version)))
        })
    ) {
        for read in [
            Activation::decode_request(&bytes, version),
            Activation::decode_response(&bytes, version),
        ] {
            let Ok(activation) = read else { continue };
            let mut written = [0xEE; Activation::LEN_MAX];
            let len = activation.encode(version, &mut written);
            prop_assert_eq!(&written[..len], &bytes[..]);
        }
    }

    #[test]
    fn a_load_header_is_written_as_it_was_read(bytes in datagram(Pdu::Load, Load::HEADER_LEN)) {
        if let Ok(load) = Load::decode(&bytes, bytes.len()) {
            // Behind the header nothing is touched.
            let mut written = [0xEE; Load::HEADER_LEN + 4];
            prop_assert_eq!(load.encode(&mut written), Load::HEADER_LEN);
            prop_assert_eq!(&written[..Load::HEADER_LEN], &bytes[..]);
            prop_assert_eq!(&written[Load::HEADER_LEN..], &[0xEE; 4]);
        }
    }

    #[test]
    fn a_status_pdu_is_read_as_it_was_written(
        (version, bytes) in version().prop_flat_map(|version| {
            (Just(version), datagram(Pdu::Status, Status::len(version)))
        })
    ) {
        // What is reserved is dropped, so it is the fields that are the same.
        if let Ok(status) = Status::decode(&bytes, version, StatusChecksum::Lenient) {
            let mut written = [0xEE; Status::LEN_MAX];
            let len = status.encode(version, &mut written);
            prop_assert_eq!(len, bytes.len());
            let mut zero = status;
            zero.check_sum = 0;
            zero.encode(version, &mut written);
            let rule = StatusChecksum::Strict;
            prop_assert_eq!(Status::decode(&written[..len], version, rule), Ok(zero));
        }
    }

    #[test]
    fn a_filled_checksum_is_right_and_finds_a_changed_bit(
        version in version(),
        bytes in prop::collection::vec(any::<u8>(), Status::LEN_MAX),
        bit in 0..8 * 50_usize,
    ) {
        type Fill = fn(Version, &mut [u8]);
        type Read = fn(Version, &[u8]) -> Result<(), DecodeError>;
        let pdus: [(Pdu, usize, Fill, Read); 5] = [
            (Pdu::Setup, Setup::LEN, |_, bytes| Setup::fill_check_sum(bytes), |_, bytes| {
                Setup::decode_response(bytes).map(drop)
            }),
            (Pdu::Null, Null::LEN, |_, bytes| Null::fill_check_sum(bytes), |_, bytes| {
                Null::decode(bytes).map(drop)
            }),
            (
                Pdu::Activation,
                Activation::len(version),
                Activation::fill_check_sum,
                |version, bytes| Activation::decode_response(bytes, version).map(drop),
            ),
            (Pdu::Load, Load::HEADER_LEN, |_, bytes| Load::fill_check_sum(bytes), |_, bytes| {
                Load::decode(bytes, bytes.len()).map(drop)
            }),
            (Pdu::Status, Status::len(version), Status::fill_check_sum, |version, bytes| {
                Status::decode(bytes, version, StatusChecksum::Strict).map(drop)
            }),
        ];
        for (pdu, len, fill, read) in pdus {
            let mut bytes = bytes[..len].to_vec();
            bytes[..2].copy_from_slice(&pdu.id().to_be_bytes());
            // Legal commands and flags wherever they are.
            bytes[2..4].fill(0);
            bytes[4..6].fill(1);
            bytes[8] = 2;
            fill(version, &mut bytes);
            prop_assert_eq!(read(version, &bytes), Ok(()));
            // Not in those, and not in a checksum, which would be "not used" if it became 0.
            let at = 10 + bit / 8 % (len - 12);
            if pdu != Pdu::Status || !(146..148).contains(&at) {
                bytes[at] ^= 1 << (bit % 8);
                prop_assert_eq!(read(version, &bytes), Err(DecodeError::Checksum { pdu }));
            }
        }
    }

    #[test]
    fn whatever_is_asked_for_becomes_legal(
        version in version(),
        bytes in prop::collection::vec(any::<u8>(), Activation::LEN_MAX),
        test_time_max_s in 5..=3600_u16,
        row_max in 0..=EXTENDED_ROW_LAST,
        extended_rows: bool,
    ) {
        let mut bytes = bytes[..Activation::len(version)].to_vec();
        bytes[..2].copy_from_slice(&Pdu::Activation.id().to_be_bytes());
        (bytes[4], bytes[5]) = (1 + bytes[4] % 2, 0);
        let len = bytes.len();
        bytes[len - 2..].fill(0);
        let request = Activation::decode_request(&bytes, version).unwrap();
        let limits = ServerLimits { test_time_max_s, row_max, extended_rows, ..ServerLimits::default() };
        let (parameters, response) = TestParameters::corrected(&request, version, &limits);
        prop_assert!(parameters.low_thresh_ms <= parameters.upper_thresh_ms);
        prop_assert!((5..=250).contains(&parameters.trial_int_ms));
        prop_assert!((5..=test_time_max_s).contains(&parameters.test_time_s));
        prop_assert!((100..=10_000).contains(&parameters.sub_int_ms));
        prop_assert!(u32::from(parameters.sub_int_ms) <= u32::from(parameters.test_time_s) * 1000);
        prop_assert!(u32::from(parameters.sr_adj_supp_count) < parameters.sub_intervals());
        let table = RateTable::extended(Variant::default());
        prop_assert!(table.get(parameters.first_row()).is_some());
        prop_assert!(parameters.first_row() <= row_max);
        // A client that had asked for just that takes it, and asks for it in the same words.
        let taken = TestParameters::accepted(&response, version, &parameters);
        prop_assert_eq!(taken, Ok(parameters));
        let (again, _) = TestParameters::corrected(
            &parameters.request(version, version.wire()), version, &limits);
        prop_assert_eq!(again, parameters);
    }

    #[test]
    fn any_size_of_a_peer_is_understood(wire: u32, ipv6: bool) {
        let size = Size::of(wire, ipv6);
        prop_assert!(size.min <= size.mean() && size.mean() <= size.max);
        prop_assert!(size.max < 1 << 31);
    }

    #[test]
    fn differences_of_any_times_are_right(a: u32, b: u32, c: u32, d: u32) {
        let (one, two) = (WallTime { sec: a, nsec: b }, WallTime { sec: c, nsec: d });
        let nanos = i128::from(one.unix_nanos()) - i128::from(two.unix_nanos());
        prop_assert_eq!(i128::from(one.nanos_since(two)), nanos);
        prop_assert_eq!(i128::from(one.ms_since(two)), (nanos + 500_000).div_euclid(1_000_000));
        prop_assert_eq!(i128::from(one.us_since(two)), nanos.div_euclid(1000));
    }
}
