//! The framing, against noise and loss.

use super::*;
use alloc::vec;
use proptest::prelude::*;

fn read(reader: &mut Reader<ToAgent>, mut bytes: &[u8]) -> Vec<Result<ToAgent, Fault>> {
    let mut found = Vec::new();
    while let Some(one) = reader.next(&mut bytes) {
        found.push(one);
    }
    found
}

fn message() -> impl Strategy<Value = ToAgent> {
    let bytes = prop::collection::vec(any::<u8>(), 0..600);
    prop_oneof![
        Just(ToAgent::Reset),
        (any::<u32>(), prop::collection::vec(bytes.clone(), 0..4), any::<bool>())
            .prop_map(|(id, argv, input)| ToAgent::Start { id, argv, input }),
        (any::<u32>(), bytes).prop_map(|(id, bytes)| ToAgent::Input { id, bytes }),
        (any::<u32>(), any::<u32>()).prop_map(|(id, bytes)| ToAgent::Taken { id, bytes }),
        (any::<u32>(), any::<u64>())
            .prop_map(|(question, unix_ns)| ToAgent::Clock { question, unix_ns }),
    ]
}

fn encode(messages: &[ToAgent]) -> Vec<Vec<u8>> {
    let mut encoder = Encoder::default();
    messages.iter().map(|message| encoder.encode(message).to_vec()).collect()
}

#[test]
fn the_check_sum_is_the_one_that_the_documentation_names() {
    // The check value of CRC-32/ISO-HDLC, as its catalogue gives it.
    assert_eq!(CRC.checksum(b"123456789"), 0xcbf4_3926);
}

#[test]
fn a_lost_frame_is_noticed_at_the_next_one() {
    let frames = encode(&[ToAgent::Reset, ToAgent::Reset, ToAgent::InputEnd { id: 1 }]);
    let bytes = [frames[0].clone(), frames[2].clone()].concat();
    assert_eq!(read(&mut Reader::default(), &bytes), [Ok(ToAgent::Reset), Err(Fault::Gap)]);
}

#[test]
fn a_frame_without_end_is_given_up_and_the_next_one_is_read() {
    let mut bytes = vec![1; 3 * FRAME_BYTES];
    bytes.push(0);
    bytes.extend(encode(&[ToAgent::Reset]).concat());
    let mut reader = Reader::default();
    assert_eq!(read(&mut reader, &bytes), [Err(Fault::Garbled), Ok(ToAgent::Reset)]);
    assert!(reader.frame.capacity() <= 2 * FRAME_BYTES);
}

#[test]
fn after_a_restart_numbers_begin_again() {
    let (mut encoder, mut reader) = (Encoder::default(), Reader::default());
    let mut bytes = encoder.encode(&ToAgent::Reset).to_vec();
    bytes.extend(encoder.encode(&ToAgent::InputEnd { id: 3 }));
    bytes.extend(b"what was cut off in the middle");
    bytes.extend(encoder.restart(&ToAgent::Reset));
    bytes.extend(encoder.encode(&ToAgent::InputEnd { id: 4 }));
    let (reset, end) = (ToAgent::Reset, |id| ToAgent::InputEnd { id });
    assert_eq!(
        read(&mut reader, &bytes),
        [Ok(reset.clone()), Ok(end(3)), Err(Fault::Garbled), Ok(reset), Ok(end(4))]
    );
}

#[test]
fn an_exit_code_is_what_a_shell_would_say() {
    assert_eq!(
        [End::Exited(3).code(), End::Signalled(9).code(), End::Signalled(255).code()],
        [3, 137, 255]
    );
}

proptest! {
    #[test]
    fn messages_come_out_as_they_went_in_however_the_bytes_are_cut(
        messages in prop::collection::vec(message(), 1..6),
        cuts in prop::collection::vec(1usize..700, 1..40),
    ) {
        let bytes = encode(&messages).concat();
        let (mut reader, mut found, mut rest) = (Reader::default(), Vec::new(), &bytes[..]);
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, later) = rest.split_at((*cut).min(rest.len()));
            found.extend(read(&mut reader, piece));
            rest = later;
        }
        let expected: Vec<_> = messages.into_iter().map(Ok).collect();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn a_damaged_byte_is_never_taken_for_another_message(
        messages in prop::collection::vec(message(), 1..4),
        at: prop::sample::Index,
        flip in 1u8..=255,
    ) {
        let mut bytes = encode(&messages).concat();
        *at.get_mut(&mut bytes) ^= flip;
        for found in read(&mut Reader::default(), &bytes).into_iter().flatten() {
            prop_assert!(messages.contains(&found));
        }
    }
}
