//! What `ethtool` shows and sets of a network card, by the kernel's ethtool netlink family (Linux 5.6
//! and later; `Documentation/networking/ethtool-netlink.rst`).
//!
//! Reading is the crate `ethtool`'s. It can set channels but not rings, coalescing and features, so
//! the messages that set something are put together here and sent through its connection.

use std::collections::BTreeMap;

use ethtool::{
    EthtoolAttr, EthtoolChannelAttr, EthtoolCoalesceAttr, EthtoolError, EthtoolFeatureAttr,
    EthtoolHandle, EthtoolHeader, EthtoolMessage, EthtoolRingAttr,
};
use futures_util::{Stream, StreamExt as _};
use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, NLM_F_ACK, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload, ParseableParametrized,
};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};

use super::setting::NicField;

/// Why a card's settings cannot be read or changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NicError {
    /// No connection to the kernel's ethtool family.
    #[error("ethtool netlink: {0}")]
    Connection(String),
    /// The kernel or the card's driver refused.
    #[error("{0}")]
    Refused(String),
    /// The card has no such setting.
    #[error("this card does not have it")]
    Absent,
    /// The value does not fit the setting.
    #[error("'{0}' is no value for it")]
    Value(String),
}

/// Everything of one card: values by field, and the most that each may be where the card says so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nic {
    values: BTreeMap<NicField, String>,
    maxima: BTreeMap<NicField, u64>,
    /// Features that can be switched.
    switchable: Vec<String>,
}

impl Nic {
    /// A setting's value.
    #[must_use]
    pub fn value(&self, field: &NicField) -> Option<&str> {
        self.values.get(field).map(String::as_str)
    }

    /// The most that a ring or the channels may be.
    #[must_use]
    pub fn maximum(&self, field: &NicField) -> Option<u64> {
        self.maxima.get(field).copied()
    }

    /// Whether a feature can be switched; other fields always can, as far as is known before.
    #[must_use]
    pub fn can_change(&self, field: &NicField) -> bool {
        match field {
            NicField::Feature(name) => self.switchable.contains(name),
            _ => self.values.contains_key(field),
        }
    }

    /// For hosts that are described by files: a value, and its most.
    pub(super) fn describe(&mut self, field: NicField, value: String, maximum: Option<u64>) {
        if let NicField::Feature(name) = &field {
            self.switchable.push(name.clone());
        }
        if let Some(maximum) = maximum {
            self.maxima.insert(field.clone(), maximum);
        }
        self.values.insert(field, value);
    }

    fn take(&mut self, attribute: EthtoolAttr) {
        let mut value = |field, value: String| {
            self.values.insert(field, value);
        };
        match attribute {
            EthtoolAttr::Ring(attribute) => match attribute {
                EthtoolRingAttr::Rx(n) => value(NicField::RxRing, n.to_string()),
                EthtoolRingAttr::Tx(n) => value(NicField::TxRing, n.to_string()),
                EthtoolRingAttr::RxMax(n) => {
                    self.maxima.insert(NicField::RxRing, n.into());
                }
                EthtoolRingAttr::TxMax(n) => {
                    self.maxima.insert(NicField::TxRing, n.into());
                }
                _ => {}
            },
            EthtoolAttr::Channel(attribute) => match attribute {
                EthtoolChannelAttr::CombinedCount(n) => value(NicField::Channels, n.to_string()),
                EthtoolChannelAttr::CombinedMax(n) => {
                    self.maxima.insert(NicField::Channels, n.into());
                }
                _ => {}
            },
            EthtoolAttr::Coalesce(attribute) => match attribute {
                EthtoolCoalesceAttr::RxUsecs(n) => value(NicField::RxUsecs, n.to_string()),
                EthtoolCoalesceAttr::TxUsecs(n) => value(NicField::TxUsecs, n.to_string()),
                EthtoolCoalesceAttr::UseAdaptiveRx(on) => value(NicField::AdaptiveRx, switch(on)),
                _ => {}
            },
            EthtoolAttr::Feature(attribute) => match attribute {
                EthtoolFeatureAttr::Hw(bits) => {
                    self.switchable = bits.into_iter().map(|bit| bit.name).collect();
                    for name in &self.switchable {
                        let field = NicField::Feature(name.clone());
                        self.values.entry(field).or_insert_with(|| switch(false));
                    }
                }
                EthtoolFeatureAttr::Active(bits) => {
                    for bit in bits {
                        value(NicField::Feature(bit.name), switch(true));
                    }
                }
                _ => {}
            },
            _ => {}
        }
    }
}

fn switch(on: bool) -> String {
    if on { "on" } else { "off" }.into()
}

/// Reads everything that a card tells. What a driver does not have is left out.
///
/// # Errors
/// When the kernel does not know the interface, or has no ethtool netlink.
pub(super) fn read(interface: &str) -> Result<Nic, NicError> {
    on_a_connection(async |mut handle| {
        let mut nic = Nic::default();
        let name = Some(interface);
        // Every device has features: an error here is one about the interface itself.
        collect(&mut nic, handle.feature().get(name).execute().await).await?;
        let _ = collect(&mut nic, handle.ring().get(name).execute().await).await;
        let _ = collect(&mut nic, handle.channel().get(name).execute().await).await;
        let _ = collect(&mut nic, handle.coalesce().get(name).execute().await).await;
        // A card that counts no channels has none to set.
        nic.values.retain(|field, value| match field {
            NicField::RxRing | NicField::TxRing | NicField::Channels => value != "0",
            _ => true,
        });
        Ok(nic)
    })
}

async fn collect(
    nic: &mut Nic,
    answers: Result<
        impl Stream<Item = Result<GenlMessage<EthtoolMessage>, EthtoolError>>,
        EthtoolError,
    >,
) -> Result<(), NicError> {
    let refused = |error: EthtoolError| match error {
        EthtoolError::NetlinkError(said) => NicError::Refused(said.to_io().to_string()),
        other => NicError::Connection(other.to_string()),
    };
    let mut answers = Box::pin(answers.map_err(refused)?);
    while let Some(answer) = answers.next().await {
        for attribute in answer.map_err(refused)?.payload.nlas {
            nic.take(attribute);
        }
    }
    Ok(())
}

/// Changes one setting.
///
/// # Errors
/// When the card or the kernel refuses.
pub(super) fn set(interface: &str, field: &NicField, value: &str) -> Result<(), NicError> {
    let change = Change::new(interface, field, value)?;
    on_a_connection(async |mut handle| {
        let mut message = NetlinkMessage::from(GenlMessage::from_payload(change));
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let answers = handle.handle.request(message).await;
        let mut answers = answers.map_err(|error| NicError::Connection(error.to_string()))?;
        while let Some(answer) = answers.next().await {
            let answer = answer.map_err(|error| NicError::Connection(error.to_string()))?;
            if let NetlinkPayload::Error(said) = answer.payload
                && said.code.is_some()
            {
                return Err(NicError::Refused(said.to_io().to_string()));
            }
        }
        Ok(())
    })
}

/// Runs `work` with a connection of its own, on this thread.
fn on_a_connection<T>(
    work: impl AsyncFnOnce(EthtoolHandle) -> Result<T, NicError>,
) -> Result<T, NicError> {
    let failed = |error: std::io::Error| NicError::Connection(error.to_string());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(failed)?;
    runtime.block_on(async {
        let (connection, handle, _) = ethtool::new_connection().map_err(failed)?;
        tokio::spawn(connection);
        work(handle).await
    })
}

// Numbers of include/uapi/linux/ethtool_netlink.h.
const FEATURES_SET: u8 = 12;
const RINGS_SET: u8 = 16;
const CHANNELS_SET: u8 = 18;
const COALESCE_SET: u8 = 20;
const HEADER: u16 = 1;
const RINGS_RX: u16 = 6;
const RINGS_TX: u16 = 9;
const CHANNELS_COMBINED: u16 = 9;
const COALESCE_RX_USECS: u16 = 2;
const COALESCE_TX_USECS: u16 = 6;
const COALESCE_ADAPTIVE_RX: u16 = 11;
const FEATURES_WANTED: u16 = 3;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// One message that sets something.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Change {
    command: u8,
    attributes: Vec<DefaultNla>,
}

impl Change {
    fn new(interface: &str, field: &NicField, value: &str) -> Result<Self, NicError> {
        let number = |kind: u16| -> Result<DefaultNla, NicError> {
            let number: u32 = value.parse().map_err(|_| NicError::Value(value.into()))?;
            Ok(DefaultNla::new(kind, number.to_ne_bytes().to_vec()))
        };
        let on = || match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(NicError::Value(value.into())),
        };
        let (command, attribute) = match field {
            NicField::RxRing => (RINGS_SET, number(RINGS_RX)?),
            NicField::TxRing => (RINGS_SET, number(RINGS_TX)?),
            NicField::Channels => (CHANNELS_SET, number(CHANNELS_COMBINED)?),
            NicField::RxUsecs => (COALESCE_SET, number(COALESCE_RX_USECS)?),
            NicField::TxUsecs => (COALESCE_SET, number(COALESCE_TX_USECS)?),
            NicField::AdaptiveRx => {
                let on = DefaultNla::new(COALESCE_ADAPTIVE_RX, vec![u8::from(on()?)]);
                (COALESCE_SET, on)
            }
            NicField::Feature(name) => {
                let mut name = name.clone().into_bytes();
                name.push(0);
                let mut bit = vec![DefaultNla::new(BIT_NAME, name)];
                if on()? {
                    bit.push(DefaultNla::new(BIT_VALUE, Vec::new()));
                }
                // Bits that are not named keep their value: the set has no flag "no mask".
                let bits = nested(BITSET_BITS, &[nested(BITS_BIT, &bit)]);
                (FEATURES_SET, nested(FEATURES_WANTED, &[bits]))
            }
        };
        let device = [EthtoolHeader::DevName(interface.into())];
        let mut header = vec![0; device.as_slice().buffer_len()];
        device.as_slice().emit(&mut header);
        let header = DefaultNla::new(HEADER | NLA_F_NESTED, header);
        Ok(Self {
            command,
            attributes: vec![header, attribute],
        })
    }
}

fn nested(kind: u16, inside: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; inside.buffer_len()];
    inside.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

impl GenlFamily for Change {
    fn family_name() -> &'static str {
        "ethtool"
    }

    fn version(&self) -> u8 {
        1
    }

    fn command(&self) -> u8 {
        self.command
    }
}

impl Emitable for Change {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Change {
    /// The answer to a change of features repeats what changed; nobody reads it.
    fn parse_with_param(_: &[u8], header: GenlHeader) -> Result<Self, DecodeError> {
        Ok(Self {
            command: header.cmd,
            attributes: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_has_features_and_no_rings() {
        let nic = read("lo").unwrap();
        let gro = NicField::Feature("rx-gro".into());
        assert!(matches!(nic.value(&gro), Some("on" | "off")), "{nic:?}");
        assert_eq!(nic.value(&NicField::RxRing), None);
    }

    #[test]
    fn an_unknown_interface_is_refused_in_words() {
        let error = read("no-such-card").unwrap_err();
        assert!(error.to_string().contains("No such device"), "{error}");
    }

    #[test]
    fn a_change_is_the_bytes_that_the_kernel_documents() {
        let change = Change::new("e", &NicField::RxRing, "512").unwrap();
        let mut bytes = vec![0; change.buffer_len()];
        change.emit(&mut bytes);
        // Header, nested: 4 + (4 + "e\0" + padding); then RINGS_RX: 4 + 4.
        let header = [12, 0, 1, 0x80, 6, 0, 2, 0, b'e', 0, 0, 0];
        assert_eq!(bytes[..12], header);
        assert_eq!(bytes[12..16], [8, 0, 6, 0]);
        assert_eq!(bytes[16..], 512_u32.to_ne_bytes());
        assert_eq!(change.command(), 16);
    }

    #[test]
    fn values_that_do_not_fit_are_refused_before_the_kernel_sees_them() {
        for (field, value) in [
            (NicField::RxRing, "many"),
            (NicField::AdaptiveRx, "1"),
            (NicField::Feature("rx-gro".into()), "yes"),
        ] {
            let error = Change::new("e", &field, value).unwrap_err();
            assert_eq!(error, NicError::Value(value.into()));
        }
    }
}
