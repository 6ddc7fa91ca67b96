//! Limits of the operating system that calls run into, and what to do about them: the system's own texts do not say.

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Why a call has failed, with what to do about it where a limit was met.
#[derive(Clone, Debug)]
pub struct Reason(String);

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

impl From<Errno> for Reason {
    fn from(error: Errno) -> Self {
        Self(match advice(error) {
            Some(advice) => format!("{error}: {advice}"),
            None => error.to_string(),
        })
    }
}

impl From<io::Error> for Reason {
    fn from(error: io::Error) -> Self {
        error.raw_os_error().map_or_else(|| Self(error.to_string()), |number| Errno::from_raw_os_error(number).into())
    }
}

fn advice(error: Errno) -> Option<String> {
    let limit = |resource| getrlimit(resource).current.map_or_else(|| "no limit".to_owned(), |limit| limit.to_string());
    Some(match error {
        Errno::MFILE => format!(
            "this process has all the file descriptors that it may have (limit {}); raise the limit (ulimit -n 65536, or \
             docker run --ulimit nofile=65536), or close files",
            limit(Resource::Nofile)
        ),
        Errno::NFILE => "the machine has no file descriptors left; raise its limit (sysctl fs.file-max), or end what \
                         holds many files"
            .to_owned(),
        Errno::NOMEM => format!(
            "the machine's memory or what this process may map is used up; pass a smaller size, or raise the limits \
             (ulimit -v, here {}; sysctl vm.max_map_count)",
            limit(Resource::As)
        ),
        Errno::FBIG => format!(
            "files of this process, those in memory too, may have {} bytes at most; raise the limit (ulimit -f)",
            limit(Resource::Fsize)
        ),
        _ => return None,
    })
}

/// Whether a call failed because there are no descriptors left, which says nothing about what was to be opened.
pub fn lacks_descriptors(error: &io::Error) -> bool {
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Why no file can be opened now, if that is for want of descriptors.
pub fn no_descriptors() -> Option<Reason> {
    std::fs::File::open("/").err().filter(lacks_descriptors).map(Reason::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_a_limit_causes_say_which_and_what_to_do() {
        let cases = [
            (Errno::MFILE, "ulimit -n"),
            (Errno::NFILE, "fs.file-max"),
            (Errno::NOMEM, "ulimit -v"),
            (Errno::FBIG, "ulimit -f"),
        ];
        for (errno, advice) in cases {
            let text = Reason::from(errno).to_string();
            assert!(text.starts_with(&errno.to_string()) && text.contains(advice), "{text}");
            assert_eq!(Reason::from(io::Error::from(errno)).to_string(), text);
        }
        assert_eq!(Reason::from(Errno::PERM).to_string(), Errno::PERM.to_string());
    }
}
