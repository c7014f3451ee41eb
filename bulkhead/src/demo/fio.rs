//! The load: fio in the guest, which writes blocks that say what they are, and reads each
//! back soon after. Builds its command lines and reads its results.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The disk in the guest.
const DISK: &str = "/dev/xvdb";

/// What all jobs have in common. The pages describe themselves, whatever a request's size.
fn job(name: &str, more: &[&str]) -> Vec<String> {
    let common = [
        "fio",
        "--ioengine=libaio",
        "--direct=1",
        "--verify=crc32c",
        "--verify_interval=4096",
        "--verify_fatal=1",
        "--output-format=json",
    ];
    let mut argv: Vec<String> = common.map(String::from).to_vec();
    argv.extend([format!("--name={name}"), format!("--filename={DISK}")]);
    argv.extend(more.iter().map(|&s| s.to_owned()));
    argv
}

/// Writes the whole disk once, so that every page of it describes itself.
pub fn fill() -> Vec<String> {
    job("fill", &["--rw=write", "--bs=128k", "--iodepth=16", "--do_verify=0"])
}

/// Writes at random for so long, 16 requests at a time; of each 256 blocks written, 256 are read
/// back and compared. Nothing is flushed: how long a flush takes is the host's affair.
pub fn load(length: Duration) -> Vec<String> {
    let runtime = format!("--runtime={}", length.as_secs().max(1));
    let how = ["--rw=randwrite", "--bs=16k", "--iodepth=16", "--verify_backlog=256"];
    job("load", &[&how[..], &["--time_based", &runtime]].concat())
}

/// Reads the whole disk and compares each page with what it says of itself.
pub fn audit() -> Vec<String> {
    job("audit", &["--rw=read", "--bs=128k", "--iodepth=4"])
}

/// What became of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Job {
    /// Of the program; 0 if it found no error.
    pub exit: u8,
    /// Linux's number of the first error, 0 for none.
    pub error: i32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    /// The longest that a request took.
    pub longest_us: u64,
    /// What it said of errors.
    pub said: String,
}

impl Job {
    pub const fn is_clean(&self) -> bool {
        self.exit == 0 && self.error == 0
    }
}

#[derive(Deserialize)]
struct Output {
    jobs: Vec<Told>,
}

#[derive(Deserialize)]
struct Told {
    error: i32,
    read: Direction,
    write: Direction,
}

#[derive(Deserialize)]
struct Direction {
    io_bytes: u64,
    #[serde(default)]
    lat_ns: Latency,
}

#[derive(Default, Deserialize)]
struct Latency {
    /// fio writes whole numbers, but does not promise to.
    #[serde(default)]
    max: f64,
}

/// Reads what fio printed: lines about errors, then an object.
///
/// # Errors
/// What does not make sense, for a person to read.
pub fn read(exit: u8, stdout: &str, stderr: &str) -> Result<Job, String> {
    let begin =
        stdout.find('{').ok_or_else(|| format!("fio printed no result: {stdout}{stderr}"))?;
    let (before, object) = stdout.split_at(begin);
    // What follows the object is no part of it.
    let mut objects = serde_json::Deserializer::from_str(object).into_iter::<Output>();
    let output = objects.next().ok_or("fio printed no result")?;
    let output = output.map_err(|e| format!("fio's result makes no sense: {e}"))?;
    let told = output.jobs.first().ok_or("fio's result has no job")?;
    Ok(Job {
        exit,
        error: told.error,
        read_bytes: told.read.io_bytes,
        written_bytes: told.write.io_bytes,
        longest_us: (told.read.lat_ns.max.max(told.write.lat_ns.max) / 1000.0) as u64,
        said: format!("{before}{stderr}").trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = r#"{ "fio version" : "fio-3.33", "jobs" : [ { "jobname" : "load", "error" : ERROR,
        "read" : { "io_bytes" : 71303168, "lat_ns" : { "min" : 1, "max" : 9000, "mean" : 2.5 } },
        "write" : { "io_bytes" : 72499200, "lat_ns" : { "max" : 142000000 } } } ] }"#;

    #[test]
    fn a_clean_result_is_read() {
        let job = read(0, &RESULT.replace("ERROR", "0"), "").expect("a result");
        assert!(job.is_clean());
        assert_eq!((job.read_bytes, job.written_bytes), (71_303_168, 72_499_200));
        assert_eq!(job.longest_us, 142_000);
    }

    #[test]
    fn errors_are_kept_with_what_fio_said_of_them() {
        let said = "verify: bad header offset 4096, wanted 0 at file /dev/xvdb\n";
        let job = read(1, &format!("{said}{}", RESULT.replace("ERROR", "84")), "").expect("read");
        assert!(!job.is_clean());
        assert_eq!((job.error, job.said.as_str()), (84, said.trim()));
    }

    #[test]
    fn output_without_a_result_is_an_error() {
        assert!(read(1, "fio: file not found", "no").expect_err("none").contains("not found"));
        assert!(read(0, "{\"jobs\": []}", "").is_err() && read(0, "{\"jobs\": 7}", "").is_err());
    }
}
