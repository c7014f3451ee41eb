//! The kernel's command line, as far as the way to the root disk depends on it. Words
//! mean what they mean to Linux without an initramfs; unknown ones are not ours.

use std::time::Duration;

/// How long a root disk may take to appear when the command line does not say.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long to wait for the root disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    AtMost(Duration),
    /// `rootwait`.
    Forever,
}

/// What the command line says of the root file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cmdline {
    pub root: Option<String>,
    /// Types to try in this order; empty for all that the kernel has.
    pub types: Vec<String>,
    /// Options for the file system, handed on as they are.
    pub flags: String,
    pub is_read_only: bool,
    /// Time to let pass before the first look.
    pub delay: Duration,
    pub wait: Wait,
    pub init: Option<String>,
}

impl Cmdline {
    /// Reads the text of `/proc/cmdline`. Of a word given twice the last one counts.
    pub fn parse(text: &str) -> Self {
        let mut line = Self {
            root: None,
            types: Vec::new(),
            flags: String::new(),
            // As the kernel has it.
            is_read_only: true,
            delay: Duration::ZERO,
            wait: Wait::AtMost(PATIENCE),
            init: None,
        };
        // What follows `--` is for the guest's own first process.
        for word in words(text).take_while(|w| w != "--") {
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (word.as_str(), None),
            };
            line.take(name, value);
        }
        line
    }

    fn take(&mut self, name: &str, value: Option<&str>) {
        let seconds = value.and_then(|v| v.parse().ok()).map(Duration::from_secs);
        match (name, value) {
            ("root", Some(root)) => self.root = Some(root.into()),
            ("rootfstype", Some(types)) => {
                self.types = types.split(',').filter(|t| !t.is_empty()).map(Into::into).collect();
            }
            ("rootflags", Some(flags)) => self.flags = flags.into(),
            ("ro", None) => self.is_read_only = true,
            ("rw", None) => self.is_read_only = false,
            ("rootdelay", Some(_)) => self.delay = seconds.unwrap_or(self.delay),
            ("rootwait", None) => self.wait = Wait::Forever,
            ("rootwait", Some(_)) => self.wait = seconds.map_or(self.wait, Wait::AtMost),
            ("init", Some(init)) => self.init = Some(init.into()),
            _ => {}
        }
    }
}

/// Words with the kernel's rule for quotes: blanks between `"` do not end a word, and the
/// quotes themselves are not part of it.
fn words(text: &str) -> impl Iterator<Item = String> {
    let mut words = vec![String::new()];
    let mut is_quoted = false;
    for c in text.chars() {
        match c {
            '"' => is_quoted = !is_quoted,
            c if c.is_ascii_whitespace() && !is_quoted => words.push(String::new()),
            c => words.last_mut().expect("never empty").push(c),
        }
    }
    words.into_iter().filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_the_words_of_a_debian_command_line() {
        let line = Cmdline::parse(
            "console=hvc0 root=/dev/xvda rw rootfstype=ext4,xfs rootflags=noatime init=/bin/sh quiet\n",
        );
        assert_eq!(line.root.as_deref(), Some("/dev/xvda"));
        assert_eq!(line.types, ["ext4", "xfs"]);
        assert_eq!((line.flags.as_str(), line.is_read_only), ("noatime", false));
        assert_eq!(line.init.as_deref(), Some("/bin/sh"));
        assert_eq!((line.delay, line.wait), (Duration::ZERO, Wait::AtMost(PATIENCE)));
    }

    #[test]
    fn the_last_of_two_words_counts_and_those_after_the_dashes_do_not() {
        let line = Cmdline::parse("rw root=/dev/xvda ro root=\"LABEL=my disk\" -- root=/dev/no");
        assert_eq!(line.root.as_deref(), Some("LABEL=my disk"));
        assert!(line.is_read_only);
    }

    #[test]
    fn waits_as_long_as_it_is_told() {
        let wait = |text| Cmdline::parse(text).wait;
        assert_eq!(wait("rootwait"), Wait::Forever);
        assert_eq!(wait("rootwait=5"), Wait::AtMost(Duration::from_secs(5)));
        assert_eq!(wait("rootwait=soon"), Wait::AtMost(PATIENCE));
        assert_eq!(Cmdline::parse("rootdelay=3").delay, Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text: String) {
            let _ = Cmdline::parse(&text);
        }
    }
}
