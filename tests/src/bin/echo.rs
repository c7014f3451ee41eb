//! A guest that says back what is typed on its console, line by line, and powers off at
//! the line `end`. It waits without using the CPU.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::string::String;
use domain_rt::{Boot, console, exec, println};

domain_rt::entry!(main);

/// Longest line that is kept; the rest of a longer one is dropped.
const LINE_BYTES: usize = 256;

fn main(_: &'static Boot) {
    println!("echo: ready");
    exec::block_on(async {
        let (mut line, mut bytes) = (String::new(), [0; 64]);
        while let Some(count) = console::read(&mut bytes).await {
            for &byte in bytes.iter().take(count) {
                match byte {
                    b'\r' | b'\n' if line == "end" => return,
                    b'\r' | b'\n' => println!("echo: {}", core::mem::take(&mut line)),
                    _ if line.len() < LINE_BYTES => line.push(char::from(byte)),
                    _ => {}
                }
            }
        }
    });
    println!("echo: the end");
}
