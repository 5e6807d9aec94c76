//! The output of a job, line by line, within bounds.

use tokio::io::{AsyncRead, AsyncReadExt};

use super::Stream;

/// Bytes of the longest line that is passed on; the rest of a longer one is left out.
pub const LINE_BYTES_MAX: usize = 64 * 1024;
const CHUNK_BYTES: usize = 8 * 1024;

/// Passes lines on until there were enough.
pub(super) struct Output<F> {
    on_line: F,
    bytes_left: usize,
    /// Whether something was left out.
    pub(super) truncated: bool,
}

impl<F: FnMut(Stream, &str)> Output<F> {
    pub(super) fn new(on_line: F, bytes_max: usize) -> Self {
        Self { on_line, bytes_left: bytes_max, truncated: false }
    }

    fn line(&mut self, stream: Stream, line: &[u8]) {
        if self.bytes_left == 0 {
            self.truncated = true;
            return;
        }
        let kept = &line[..line.len().min(self.bytes_left)];
        self.truncated |= kept.len() < line.len();
        // The newline counts, or a flood of empty lines would cost nothing.
        self.bytes_left = self.bytes_left.saturating_sub(kept.len() + 1);
        (self.on_line)(stream, &String::from_utf8_lossy(kept));
    }
}

/// One of the two outputs, cut into lines.
pub(super) struct Lines<R> {
    reader: Option<R>,
    stream: Stream,
    chunk: Box<[u8; CHUNK_BYTES]>,
    line: Vec<u8>,
    /// The line was too long; its rest is being left out.
    skipping: bool,
}

impl<R: AsyncRead + Unpin> Lines<R> {
    pub(super) fn new(reader: Option<R>, stream: Stream) -> Self {
        Self { reader, stream, chunk: Box::new([0; CHUNK_BYTES]), line: Vec::new(), skipping: false }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.reader.is_none()
    }

    /// Waits for more output and returns its length, 0 at its end. Safe to drop while it waits.
    pub(super) async fn read(&mut self) -> usize {
        match &mut self.reader {
            // A pipe that cannot be read is at its end.
            Some(reader) => reader.read(&mut self.chunk[..]).await.unwrap_or(0),
            None => std::future::pending().await,
        }
    }

    /// Takes in what [`Lines::read`] returned.
    pub(super) fn take<F: FnMut(Stream, &str)>(&mut self, length: usize, output: &mut Output<F>) {
        if length == 0 {
            self.reader = None;
            self.finish(output);
            return;
        }
        let chunk = std::mem::replace(&mut self.chunk, Box::new([0; CHUNK_BYTES]));
        for piece in chunk[..length].split_inclusive(|byte| *byte == b'\n') {
            let (text, ends) = piece.strip_suffix(b"\n").map_or((piece, false), |text| (text, true));
            self.append(text, output);
            if ends {
                self.end_line(output);
            }
        }
        self.chunk = chunk;
    }

    /// Passes on a last line that nothing ended.
    pub(super) fn finish<F: FnMut(Stream, &str)>(&mut self, output: &mut Output<F>) {
        if !self.line.is_empty() || self.skipping {
            self.end_line(output);
        }
    }

    fn append<F: FnMut(Stream, &str)>(&mut self, text: &[u8], output: &mut Output<F>) {
        let room = LINE_BYTES_MAX - self.line.len();
        self.line.extend_from_slice(&text[..text.len().min(room)]);
        if text.len() > room {
            self.skipping = true;
            output.truncated = true;
        }
    }

    fn end_line<F: FnMut(Stream, &str)>(&mut self, output: &mut Output<F>) {
        output.line(self.stream, self.line.strip_suffix(b"\r").unwrap_or(&self.line));
        self.line.clear();
        self.skipping = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_of(input: &[u8], bytes_max: usize) -> (Vec<String>, bool) {
        let mut got = Vec::new();
        let mut output = Output::new(|_, line: &str| got.push(line.to_owned()), bytes_max);
        let mut lines = Lines::new(Some(input), Stream::Stdout);
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(async {
            while !lines.is_closed() {
                let length = lines.read().await;
                lines.take(length, &mut output);
            }
        });
        let truncated = output.truncated;
        (got, truncated)
    }

    #[test]
    fn output_comes_line_by_line_and_the_last_line_needs_no_end() {
        let (lines, truncated) = lines_of(b"one\r\n\ntwo\nthree \xff", 1_000);
        assert_eq!(
            (lines, truncated),
            (vec!["one".into(), String::new(), "two".into(), "three \u{fffd}".into()], false)
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_and_the_next_one_is_whole() {
        let input = [&b"x".repeat(LINE_BYTES_MAX + 70_000), &b"\nnext\n"[..]].concat();
        let (lines, truncated) = lines_of(&input, 1 << 20);
        assert_eq!((lines[0].len(), lines[1].as_str(), lines.len()), (LINE_BYTES_MAX, "next", 2));
        assert!(truncated);
        let (lines, truncated) = lines_of(&b"x".repeat(LINE_BYTES_MAX), 1 << 20);
        assert_eq!((lines[0].len(), lines.len(), truncated), (LINE_BYTES_MAX, 1, false));
    }

    #[test]
    fn no_more_is_passed_on_than_allowed_not_even_empty_lines() {
        let (lines, truncated) = lines_of(&b"12345678\n".repeat(100), 20);
        assert_eq!((lines, truncated), (vec!["12345678".into(), "12345678".into(), "12".into()], true));
        assert!(lines_of(&b"\n".repeat(10_000), 20).0.len() <= 20);
    }
}
