//! A load on a disk that verifies itself: every block says who wrote it and when, a table
//! knows what was acknowledged, and what a correct disk never does is named. Runs on any
//! front end; the host judges the image afterwards by the same rules.
//!
//! - [`block`]: what a block says of itself.
//! - [`table`]: what blocks must hold, and the names of what is wrong.
//! - [`load`]: what is asked next.
//! - [`gaps`]: how long the disk was silent.
//! - [`run`](mod@run): all of it on a disk.
//! - [`audit`](mod@audit): the table at the end of the disk, and an image judged by it.
//! - [`Plan`], [`Summary`]: what is asked for, and how it went.

pub mod audit;
pub mod block;
pub mod gaps;
pub mod load;
mod plan;
pub mod run;
pub mod summary;
pub mod table;

pub use plan::Plan;
pub use run::{Host, Wish, run};
pub use summary::{Counts, Summary};
