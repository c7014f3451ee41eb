//! Boots one PV kernel as Dom0 with nothing beside it: for guests that test the core
//! alone and speak on the debug UART.

use crate::{
    archive::{self, Dom0},
    artifacts, builtin,
    machine::{CORE_LOG, QEMU_LOG},
    qemu::{self, Ended},
    session::Session,
    setup::Size,
};
use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Memory of the machine beside the domain's.
const BESIDE: Size = Size::from_mib(64);

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// A file, or the name of a builtin kernel.
    pub dom0: &'a Path,
    pub cmdline: &'a str,
    pub memory_mib: u64,
    /// The machine is ended after this long.
    pub limit: Duration,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Booted {
    /// None if the limit was reached.
    pub ended: Option<Ended>,
    /// What the core and the domain wrote on the debug UART.
    pub log: String,
}

/// Builds what is needed, boots on TCG, and gives what was printed; `follow` gets it as
/// it comes.
///
/// # Errors
/// If something cannot be built or started, in words.
pub fn boot(request: &Request<'_>, follow: &dyn Fn(&[u8])) -> Result<Booted, String> {
    let (core, dom0) = files(request.dom0)?;
    let read =
        |path: &Path| fs::read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    let elf = read(&dom0)?;
    let dom0 = Dom0 {
        elf: &elf,
        cmdline: request.cmdline,
        frames: request.memory_mib.saturating_mul(256),
    };
    let packed = archive::pack(dom0, Some(&read(&core)?), &[]).map_err(|e| e.to_string())?;
    let session = Session::create("solo").map_err(|e| format!("cannot make a folder: {e}"))?;
    let (archive, debug_log) = (session.file("archive"), session.file(CORE_LOG));
    fs::write(&archive, packed).map_err(|e| format!("cannot write the archive: {e}"))?;
    let options = qemu::Options {
        core: &core,
        archive: &archive,
        memory: Size::from_mib(request.memory_mib + BESIDE.mib()),
        kvm: false,
        icount: false,
        drives: &[],
        debug_log: &debug_log,
        link: None,
        lane: None,
    };
    let mut child =
        options.start(&session.file(QEMU_LOG)).map_err(|e| format!("cannot start QEMU: {e}"))?;
    let (ended, log) = wait(&mut child, &debug_log, request.limit, follow);
    let _ = child.kill();
    let _ = child.wait();
    if ended == Some(Ended::Refused) {
        let told = fs::read_to_string(session.file(QEMU_LOG)).unwrap_or_default();
        return Err(format!("QEMU refused to start:\n{told}"));
    }
    Ok(Booted { ended, log: String::from_utf8_lossy(&log).into_owned() })
}

fn files(dom0: &Path) -> Result<(PathBuf, PathBuf), String> {
    let named = dom0.to_str().filter(|_| !dom0.is_file()).and_then(builtin::find);
    let programs: Vec<_> = std::iter::once(&builtin::CORE).chain(named).collect();
    let built = artifacts::build(&programs, false)?;
    let file = |program| {
        let found = built.file(program).map(Path::to_owned);
        found.ok_or_else(|| format!("{} was not built", program.purpose))
    };
    let dom0 = named.map_or_else(|| Ok(dom0.to_owned()), file)?;
    Ok((file(&builtin::CORE)?, dom0))
}

fn wait(
    child: &mut std::process::Child,
    log: &Path,
    limit: Duration,
    follow: &dyn Fn(&[u8]),
) -> (Option<Ended>, Vec<u8>) {
    let deadline = Instant::now() + limit;
    let (mut text, mut file) = (Vec::new(), None);
    loop {
        let status = qemu::wait_until(child, Instant::now() + Duration::from_millis(100));
        // QEMU makes the file when it starts.
        file = file.or_else(|| File::open(log).ok());
        let seen = text.len();
        if let Some(file) = &mut file {
            let _ = file.read_to_end(&mut text);
        }
        follow(&text[seen..]);
        if status.is_some() || Instant::now() >= deadline {
            return (status.map(Ended::from_status), text);
        }
    }
}
