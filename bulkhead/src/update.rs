//! The image that a driver domain is updated to while it runs: found, checked as far as
//! that goes here, and sent to Dom0 piece by piece.

use crate::{
    artifacts,
    builtin::{self, Builtin},
    distro::Flavour,
    kernel_image::KernelImage,
    progress::{Amount, Progress},
    remote::{RemoteError, Result, connect_for},
    setup::suggest,
    wire::Client,
};
use bulkhead_link::{IMAGE_PART_BYTES, MOST_IMAGE_BYTES, NewImage, Reply, Request};
use std::{
    fs,
    path::Path,
    process,
    rc::Rc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// How long Dom0 may take to reply; a part goes over a slow link if there is no other.
const LIMIT: Duration = Duration::from_secs(60);
/// The package of driver domains.
const DRIVERS: &str = "drivers-domain";

/// An image, and how a person calls it.
#[derive(Clone, Debug)]
pub struct Image {
    pub name: String,
    pub elf: Rc<Vec<u8>>,
}

/// Restarts a driver domain with an image: a builtin driver domain by its name, or a file.
///
/// # Errors
/// If there is no such driver domain or image, or Dom0 refuses it.
pub fn update(
    run: Option<&str>,
    domain: &str,
    kernel: &str,
    show_build: bool,
    progress: &Progress,
) -> Result<()> {
    // What is told at once comes before minutes of building.
    let mut client = connect_for(run, domain)?;
    let image = find(kernel, show_build)?;
    let upload = send(&mut client, &image, progress)?;
    let to = NewImage::Sent { upload, name: image.name };
    asked(client.ask(Request::Update { domain: domain.into(), to }, LIMIT)?)
}

/// Restarts a driver domain with the image of the set-up.
///
/// # Errors
/// If there is no such driver domain, or it runs that image already.
pub fn to_original(run: Option<&str>, domain: &str) -> Result<()> {
    let mut client = connect_for(run, domain)?;
    let to = NewImage::Original;
    asked(client.ask(Request::Update { domain: domain.into(), to }, LIMIT)?)
}

fn asked(reply: Reply) -> Result<()> {
    match reply {
        Reply::Error(why) => Err(RemoteError::Refused(why)),
        _ => Ok(()),
    }
}

/// The image that a person means by a word, as in a set-up file.
fn find(kernel: &str, show_build: bool) -> Result<Image> {
    if let Some(program) = builtin::find(kernel) {
        return built(program, show_build);
    }
    let path = Path::new(kernel);
    let bad = |why: String| RemoteError::BadImage { image: kernel.into(), why };
    if !path.is_file() && !kernel.contains(['/', '.']) {
        if Flavour::find(kernel).is_some() {
            return Err(bad("a distribution's kernel is no driver domain".into()));
        }
        let hint = suggest(kernel, drivers().map(|program| program.name));
        return Err(bad(format!("there is no such file and no such driver domain; {hint}")));
    }
    let bytes = fs::read(path).map_err(|e| bad(format!("it cannot be read: {e}")))?;
    checked(kernel, bytes)
}

fn drivers() -> impl Iterator<Item = &'static Builtin> {
    builtin::DOMAINS.iter().filter(|program| program.package == DRIVERS)
}

fn built(program: &'static Builtin, show_build: bool) -> Result<Image> {
    let bad = |why: String| RemoteError::BadImage { image: program.name.into(), why };
    if program.package != DRIVERS {
        let names: Vec<_> = drivers().map(|program| program.name).collect();
        let why = format!(
            "it {}, and is no driver domain; there are: {}",
            program.purpose,
            names.join(", ")
        );
        return Err(bad(why));
    }
    let built = artifacts::build(&[program], show_build).map_err(bad)?;
    let path = built.file(program).ok_or_else(|| bad("it was not built".into()))?;
    let bytes = fs::read(path).map_err(|e| bad(format!("it cannot be read: {e}")))?;
    checked(program.name, bytes)
}

/// Refuses what Dom0 would refuse, with more to say about it.
fn checked(name: &str, bytes: Vec<u8>) -> Result<Image> {
    let bad = |why: String| RemoteError::BadImage { image: name.into(), why };
    let image = KernelImage::open(bytes).map_err(|e| bad(format!("{e}; {}", e.remedy())))?;
    if image.elf.len() as u64 > MOST_IMAGE_BYTES {
        let (has, most) = (image.elf.len() >> 20, MOST_IMAGE_BYTES >> 20);
        return Err(bad(format!("it has {has} MiB; {most} MiB can be sent")));
    }
    Ok(Image { name: name.into(), elf: image.elf })
}

/// Sends an image; gives the number of the upload.
fn send(client: &mut Client, image: &Image, progress: &Progress) -> Result<u64> {
    let upload = upload_number();
    let total = image.elf.len() as u64;
    let task = progress.begin(format!("sending {}", image.name), Amount::Bytes(total));
    let mut offset = 0;
    for part in image.elf.chunks(IMAGE_PART_BYTES) {
        let bytes = part.to_vec();
        asked(client.ask(Request::ImagePart { upload, total, offset, bytes }, LIMIT)?)?;
        offset += part.len() as u64;
        task.advance(part.len() as u64);
    }
    Ok(upload)
}

/// A number that no other terminal has.
fn upload_number() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos() as u64 ^ u64::from(process::id()) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kernel: &str) -> String {
        find(kernel, false).map(|image| image.name).expect_err("refused").to_string()
    }

    #[test]
    fn what_is_no_image_of_a_driver_domain_is_refused_with_a_remedy() {
        assert!(told("disk-fault").contains("did you mean `disk-faults`?"));
        assert!(told("echo").contains("no driver domain; there are: disk, disk-faults"));
        assert!(told("debian").contains("no driver domain"));
        assert!(told("no/such/file").contains("cannot be read"));
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), b"\x7fELF and nothing else").expect("written");
        let told = told(&file.path().display().to_string());
        assert!(told.contains("64-bit x86"), "{told}");
    }
}
