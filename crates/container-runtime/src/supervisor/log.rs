//! The log of a container in CRI's form: `TIME STREAM TAG MESSAGE`, one line each.
//!
//! A line longer than [`MAX_LINE_BYTES`] is written in parts tagged `P`, its last part `F`. What a process leaves
//! unfinished when it ends is a part too.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

/// The longest message of one log line, as in containerd.
const MAX_LINE_BYTES: usize = 16 << 10;

/// Which stream a chunk came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Writes the log of one container.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: PathBuf,
    file: Option<File>,
    unfinished: [Vec<u8>; 2],
}

impl LogWriter {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        let file = Some(open(&path)?);
        Ok(Self { path, file, unfinished: [Vec::new(), Vec::new()] })
    }

    /// Opens the log again under its name, after someone moved it away.
    pub(crate) fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(open(&self.path)?);
        Ok(())
    }

    /// Takes what a process wrote and writes every line that is whole.
    pub(crate) fn write(&mut self, stream: Stream, chunk: &[u8], time: &str) -> io::Result<()> {
        let mut out = Vec::with_capacity(chunk.len() + 64);
        let pending = &mut self.unfinished[stream as usize];
        for piece in chunk.split_inclusive(|&byte| byte == b'\n') {
            let (text, whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            pending.extend_from_slice(text);
            while pending.len() > MAX_LINE_BYTES {
                line(&mut out, stream, "P", &pending[..MAX_LINE_BYTES], time);
                pending.drain(..MAX_LINE_BYTES);
            }
            if whole {
                line(&mut out, stream, "F", pending, time);
                pending.clear();
            }
        }
        self.append(&out)
    }

    /// Writes what has no newline: the stream is at its end.
    pub(crate) fn finish(&mut self, stream: Stream, time: &str) -> io::Result<()> {
        let pending = std::mem::take(&mut self.unfinished[stream as usize]);
        if pending.is_empty() {
            return Ok(());
        }
        let mut out = Vec::with_capacity(pending.len() + 64);
        line(&mut out, stream, "P", &pending, time);
        self.append(&out)
    }

    fn append(&mut self, out: &[u8]) -> io::Result<()> {
        match &mut self.file {
            Some(file) if !out.is_empty() => file.write_all(out),
            _ => Ok(()),
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o640).open(path)
}

fn line(out: &mut Vec<u8>, stream: Stream, tag: &str, message: &[u8], time: &str) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.push(b' ');
    out.extend_from_slice(tag.as_bytes());
    out.push(b' ');
    out.extend_from_slice(message);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(chunks: &[&str], expected: &str) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut log = LogWriter::open(path.clone()).unwrap();
        for chunk in chunks {
            log.write(Stream::Stdout, chunk.as_bytes(), "T").unwrap();
        }
        log.finish(Stream::Stdout, "T").unwrap();
        assert_eq!(std::fs::read_to_string(path).unwrap(), expected);
    }

    #[test]
    fn whole_lines_are_full_and_the_rest_is_a_part() {
        check(&["a\nb", "c\n\n", "d"], "T stdout F a\nT stdout F bc\nT stdout F \nT stdout P d\n");
    }

    #[test]
    fn long_lines_are_split() {
        let long = "x".repeat(MAX_LINE_BYTES);
        check(&[&long, "yz\n"], &format!("T stdout P {long}\nT stdout F yz\n"));
        check(&[&long, "\n"], &format!("T stdout F {long}\n"));
    }

    #[test]
    fn a_rotated_log_is_left_alone_after_reopening() {
        let directory = tempfile::tempdir().unwrap();
        let (path, old) = (directory.path().join("0.log"), directory.path().join("0.log.1"));
        let mut log = LogWriter::open(path.clone()).unwrap();
        log.write(Stream::Stderr, b"one\n", "T").unwrap();
        std::fs::rename(&path, &old).unwrap();
        log.reopen().unwrap();
        log.write(Stream::Stderr, b"two\n", "T").unwrap();
        assert_eq!(std::fs::read_to_string(old).unwrap(), "T stderr F one\n");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "T stderr F two\n");
    }
}
