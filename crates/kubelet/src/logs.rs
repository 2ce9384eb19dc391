//! The CRI log format: `time stream tag text`, one line each, long lines in parts.

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LogLine<'a> {
    pub(crate) time: &'a str,
    pub(crate) stderr: bool,
    /// The line goes on in the next entry.
    pub(crate) partial: bool,
    pub(crate) text: &'a str,
}

pub(crate) fn parse_line(line: &str) -> Option<LogLine<'_>> {
    let mut parts = line.splitn(4, ' ');
    let time = parts.next()?;
    let stream = parts.next()?;
    let tag = parts.next()?;
    if !matches!(stream, "stdout" | "stderr") {
        return None;
    }
    let partial = tag.split(':').next() == Some("P");
    Some(LogLine { time, stderr: stream == "stderr", partial, text: parts.next().unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_taken_apart() {
        for (line, expected) in [
            ("2026-01-01T00:00:00.1Z stdout F hello world", Some((false, false, "hello world"))),
            ("2026-01-01T00:00:00.1Z stderr P part", Some((true, true, "part"))),
            ("2026-01-01T00:00:00.1Z stdout F ", Some((false, false, ""))),
            ("garbage", None),
            ("", None),
        ] {
            assert_eq!(parse_line(line).map(|l| (l.stderr, l.partial, l.text)), expected, "{line}");
        }
    }
}
