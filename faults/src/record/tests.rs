use super::*;
use crate::fault::{Action, Patch};
use crate::model::Model;
use crate::testing::{TEXT, elf_of};
use crate::units::Bytes;

fn image() -> Image {
    Image::parse(&elf_of(&[0x74, 0x05, 0xc3])).unwrap()
}

fn record() -> Record {
    let action = Action::Patch(Patch {
        va: Va::new(TEXT),
        old: Bytes(vec![0x74, 0x05]),
        new: Bytes(vec![0x75, 0x05]),
        what: "je -> jne".into(),
    });
    let seen = Observation { activated_us: Some(Us::new(9)), serving: true, ..Default::default() };
    Record {
        schema: SCHEMA,
        number: 17,
        seed: Seed::new(42).unwrap(),
        campaign: Hash::of(b"campaign"),
        image: image().hash(),
        fault: Fault { model: Model::InvertedBranch, after_us: Us::new(1234), action },
        place: Place::of(&image(), Va::new(TEXT)),
        shard: Shard::WHOLE,
        boot: 0,
        injected_us: Us::new(99),
        outcome: Outcome::of(&seen),
        seen,
    }
}

fn line() -> String {
    Line::Fault(Box::new(record())).written()
}

/// The form of a line is a contract with every log ever written.
#[test]
fn a_line_looks_so() {
    let hash = |hash: Hash| serde_json::to_string(&hash).unwrap();
    let expected = format!(
        concat!(
            r#"{{"kind":"fault","schema":1,"number":17,"seed":42,"campaign":{},"image":{},"#,
            r#""fault":{{"model":"inverted-branch","after_us":1234,"action":{{"kind":"patch","#,
            r#""va":"0xffffffff80100000","old":"7405","new":"7505","what":"je -> jne"}}}},"#,
            r#""place":{{"symbol":"blkback::server::step","offset":0}},"shard":"0/1","boot":0,"#,
            r#""injected_us":99,"outcome":"benign","seen":{{"activated_us":9,"detected":null,"#,
            r#""restarts":[],"load":{{"errors":0,"wrong":0,"stale":0,"torn":0,"misdirected":0}},"#,
            r#""overdue":false,"serving":true,"others":[],"core":null}}}}"#
        ),
        hash(record().campaign),
        hash(record().image),
    );
    assert_eq!(line(), expected);
}

#[test]
fn a_line_replays_alone() {
    assert_eq!(Record::for_replay(&line(), &image()).unwrap(), record());
}

#[test]
fn a_line_from_another_build_is_refused() {
    let other = Image::parse(&elf_of(&[0x74, 0x05, 0x90, 0xc3])).unwrap();
    let error = Record::for_replay(&line(), &other).unwrap_err();
    assert!(error.to_string().contains("another build"), "{error}");
    assert!(error.remedy().unwrap().contains("revision"), "{error}");
}

#[test]
fn a_line_that_was_changed_is_refused() {
    for (from, to, words) in [
        ("7405", "7406", "other bytes"),
        ("7505", "750590", "not as long"),
        ("0xffffffff80100000", "0xffffffff80100001", "other bytes"),
        ("0xffffffff80100000", "0xffffffffffffffff", "other bytes"),
        ("inverted-branch", "inverted", "no line"),
        ("\"schema\":1", "\"schema\":2", "schema 2"),
        ("\"seed\":42", "\"seed\":9223372036854775808", "out of range"),
        ("\"boot\":0,", "", "no line"),
    ] {
        assert!(line().contains(from), "{from}");
        let error = Record::for_replay(&line().replace(from, to), &image()).unwrap_err();
        assert!(error.to_string().contains(words), "{to}: {error}");
    }
}
