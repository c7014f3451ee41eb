//! Fault campaigns against a driver domain: which faults there are, which one comes
//! when, what came of each, and the report.
//!
//! ```text
//! campaign file --> Plan (seed, image) --> Fault n --> Machine --> Observation
//!                                                                      |
//!          Report (HTML, JSON, terminal) <-- Log (JSON Lines) <-- Record + Outcome
//! ```
//!
//! Fault `n` depends on the seed, `n`, the models' weights and the driver domain's
//! image, and on nothing that happens: so shards share a campaign without talking to
//! each other, and one line of the log runs again alone.
//!
//! It must not know how a fault gets into a machine, nor how a machine is run: that is
//! behind [`runner::Machine`], which [`fake::FakeMachine`] is for tests.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod binary;
pub mod campaign;
pub mod error;
pub mod fake;
pub mod fault;
pub mod image;
pub mod log;
pub mod model;
pub mod outcome;
pub mod plan;
pub mod record;
pub mod report;
pub mod runner;
pub mod statistics;
pub mod units;

mod dice;
#[cfg(test)]
mod testing;

pub use campaign::Campaign;
pub use error::CampaignError;
pub use fault::Fault;
pub use image::Image;
pub use log::Log;
pub use model::{Family, Model};
pub use outcome::{Observation, Outcome};
pub use plan::{Plan, Shard};
pub use record::Record;
pub use report::Report;
