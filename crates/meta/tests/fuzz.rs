//! Parsers take anything, and print what they read.

use meta::quantity::Quantity;
use meta::selector::{FieldSelector, LabelSelector};
use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn quantities_read_what_they_print(text in "[-+]?[0-9]{0,20}\\.?[0-9]{0,12}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,2}|E[0-9])?") {
        if let Ok(quantity) = text.parse::<Quantity>() {
            let printed = quantity.to_string();
            let again: Quantity = printed.parse().expect("its own text");
            prop_assert_eq!(&again.to_string(), &printed);
        }
    }

    #[test]
    fn selectors_read_what_they_print(text in "[a-c/.!=<>(), innot-]{0,24}") {
        if let Ok(selector) = LabelSelector::parse(&text) {
            let printed = selector.to_string();
            prop_assert_eq!(LabelSelector::parse(&printed).map(|again| again.to_string()), Ok(printed));
        }
        if let Ok(selector) = FieldSelector::parse(&text) {
            prop_assert_eq!(FieldSelector::parse(&selector.to_string()), Ok(selector));
        }
    }

    #[test]
    fn parsers_take_anything(text in "\\PC{0,40}") {
        drop(text.parse::<Quantity>().map(|quantity| quantity.to_string()));
        drop(LabelSelector::parse(&text));
        drop(FieldSelector::parse(&text));
        drop(meta::time::parse(&text));
        drop(meta::time::parse_micro(&text));
        drop(meta::time::parse_duration(&text));
        drop(meta::content::label_key(&text));
    }

    #[test]
    fn durations_read_what_they_print(nanoseconds in any::<i64>()) {
        let printed = meta::time::GoDuration(nanoseconds).to_string();
        prop_assert_eq!(meta::time::parse_duration(&printed), Ok(meta::time::GoDuration(nanoseconds)));
    }
}
