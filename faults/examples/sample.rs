//! A report to look at before there is anything to report: runs a campaign against a
//! machine that makes its answers up.
//!
//! ```text
//! cargo run -p faults --example sample -- CAMPAIGN.toml DRIVER-IMAGE FOLDER
//! ```

use faults::fake::{FakeMachine, Quiet, made_up};
use faults::log::File;
use faults::plan::Shard;
use faults::report::html::{self, About};
use faults::report::terminal::{self, Style};
use faults::runner::Runner;
use faults::{Campaign, Image, Log, Plan, Report};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let [campaign, image, folder] = arguments.as_slice() else {
        return Err("usage: sample CAMPAIGN.toml DRIVER-IMAGE FOLDER".into());
    };
    let campaign = Campaign::load(Path::new(campaign))?;
    let plan = Plan::new(&campaign, Image::parse(&std::fs::read(image)?)?)?;
    let machine = FakeMachine::new(made_up(campaign.seed));
    let mut log = Vec::new();
    Runner::new(&campaign, &plan, Shard::WHOLE, machine)?.run(None, &mut log, &mut Quiet)?;
    let folder = Path::new(folder);
    std::fs::write(folder.join("sample.jsonl"), &log)?;
    let log = Log::merge(&[File::read(&folder.join("sample.jsonl"))?])?;
    let report = Report::new(&log);
    std::fs::write(folder.join("sample.json"), report.json())?;
    std::fs::write(folder.join("sample.html"), html::page(&report, &about(&campaign)))?;
    print!("{}", terminal::summary(&report, Style { colour: false }));
    Ok(())
}

fn about(campaign: &Campaign) -> About {
    About {
        subject: format!("made up, for driver domain {}", campaign.driver),
        command: "cargo run -p faults --example sample".into(),
        replay: format!("cargo bulkhead inject {} --replay", campaign.source.name),
    }
}
