//! Two threads on one ring, sleeping and waking as two domains do. A lost wake-up
//! shows as a time-out; a torn or repeated entry as a wrong sum.

mod common;

use common::{Words, memory};
use ring_proto::{BackRing, FrontRing};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);

fn wait(events: &Receiver<()>) {
    events.recv_timeout(LIMIT).expect("no wake-up was lost");
}

#[test]
fn every_request_is_answered_once_and_in_order_by_an_end_that_sleeps() {
    let count: u32 = if cfg!(miri) { 60 } else { 50_000 };
    let memory = Arc::new(memory(8, 4));
    let (kick_back, back_events): (Sender<()>, _) = channel();
    let (kick_front, front_events): (Sender<()>, _) = channel();
    let mut front = FrontRing::<Words, _>::new(memory.as_slice()).unwrap();

    thread::scope(|scope| {
        let shared = memory.clone();
        scope.spawn(move || {
            let mut back = BackRing::<Words, _>::new(shared.as_slice()).unwrap();
            let mut served = 0;
            while served < count {
                while let Some(request) = back.take().unwrap() {
                    back.write(&request.wrapping_mul(3)).unwrap();
                    back.publish().unwrap();
                    served += 1;
                }
                if back.must_notify() {
                    // Fails only when the front end is done and gone.
                    let _ = kick_front.send(());
                }
                if served < count && !back.final_check().unwrap() {
                    wait(&back_events);
                }
            }
        });
        let (mut sent, mut got) = (0, 0);
        while got < count {
            while sent < count && front.push(&sent).is_ok() {
                sent += 1;
            }
            if front.publish() {
                let _ = kick_back.send(());
            }
            while let Some(response) = front.take().unwrap() {
                assert_eq!(response, u32::wrapping_mul(got, 3));
                got += 1;
            }
            if got < count && (sent == count || front.free() == 0) && !front.final_check().unwrap()
            {
                wait(&front_events);
            }
        }
    });
}
