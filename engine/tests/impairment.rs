//! How an impairment is written down.

use ringmill_engine::impairment::{Blackout, Impairment, Loss, Rate};

#[test]
fn a_description_survives_json_and_nonsense_is_refused() {
    let text = r#"{"loss":{"model":"uniform","probability":0.1},"delay_us":5,
        "rate":{"bits_per_second":1000,"queue_bytes_max":10}}"#;
    let model: Impairment = serde_json::from_str(text).unwrap();
    assert_eq!(model.loss, Loss::Uniform { probability: 0.1 });
    assert_eq!(model.validate(), Ok(()));
    let again = serde_json::from_str(&serde_json::to_string(&model).unwrap()).unwrap();
    assert_eq!(model, again);
    assert!(serde_json::from_str::<Impairment>(r#"{"los":1}"#).is_err());
    for bad in [
        Impairment {
            duplication: 1.5,
            ..Impairment::default()
        },
        Impairment {
            loss: Loss::Uniform {
                probability: f64::NAN,
            },
            ..Impairment::default()
        },
        Impairment {
            rate: Some(Rate {
                bits_per_second: 0,
                queue_bytes_max: 1,
                ..Rate::default()
            }),
            ..Impairment::default()
        },
        Impairment {
            blackouts: vec![Blackout {
                from_us: 2,
                until_us: 1,
                every_us: None,
            }],
            ..Impairment::default()
        },
    ] {
        assert!(bad.validate().is_err(), "{bad:?}");
    }
}
