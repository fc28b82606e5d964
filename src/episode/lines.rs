//! Files of lines: what stands on each, and what is wrong with it.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use rayon::prelude::*;

use crate::error::with_nearest_key;

/// What is wrong with one line of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The line, counted from 1.
    pub line: usize,
    /// What is wrong with it.
    pub message: String,
}

/// How much of a file is read at once: enough to share among all cores, little beside anything else in memory.
const PART: u64 = 1 << 20;

/// Calls `f` with every non-blank line of a file and its number; what `f` finds wrong with a line, and lines that are
/// no text, make the problems.
///
/// # Errors
/// If the file cannot be read.
pub fn scan(path: &Path, mut f: impl FnMut(usize, &str) -> Result<(), Vec<String>>) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for_each_part(path, |lines| {
        for &(number, bytes) in lines {
            let found = text(bytes).and_then(|text| text.map_or(Ok(()), |text| f(number, text)));
            problems.extend(of_line(number, found));
        }
    })?;
    Ok(problems)
}

/// As [`scan`], on all cores: `parse` is called with the lines in any order, and `take` in their own order with what it
/// made of them. What both find wrong makes the problems.
///
/// # Errors
/// If the file cannot be read.
pub fn scan_in_parallel<T: Send>(
    path: &Path,
    parse: impl Fn(usize, &str) -> Result<T, Vec<String>> + Sync,
    mut take: impl FnMut(usize, T) -> Result<(), Vec<String>>,
) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    for_each_part(path, |lines| {
        let parse = |&(number, bytes): &(usize, &[u8])| {
            text(bytes).and_then(|text| text.map(|text| parse(number, text)).transpose())
        };
        let parsed: Vec<_> = lines.par_iter().map(parse).collect();
        for (&(number, _), parsed) in lines.iter().zip(parsed) {
            let found = parsed.and_then(|parsed| parsed.map_or(Ok(()), |parsed| take(number, parsed)));
            problems.extend(of_line(number, found));
        }
    })?;
    Ok(problems)
}

/// Calls `f` with the lines of a file and their numbers, many at a time.
fn for_each_part(path: &Path, mut f: impl FnMut(&[(usize, &[u8])])) -> Result<()> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut file = BufReader::new(file);
    let start = file.fill_buf().with_context(|| format!("cannot read {}", path.display()))?;
    if let Some(kind) = binary(start) {
        bail!("{} is {kind}, no text: lines of JSON are wanted", path.display());
    }
    let mut bytes = Vec::new();
    let mut number = 1;
    loop {
        bytes.clear();
        let read = file.by_ref().take(PART).read_to_end(&mut bytes);
        // The rest of the last line.
        read.and_then(|_| if bytes.ends_with(b"\n") { Ok(0) } else { file.read_until(b'\n', &mut bytes) })
            .with_context(|| format!("cannot read {} at line {number}", path.display()))?;
        if bytes.is_empty() {
            return Ok(());
        }
        let mut lines = Vec::new();
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', &bytes).map(|end| end + 1).chain([bytes.len()]) {
            if start < end {
                lines.push((number, &bytes[start..end]));
                number += 1;
            }
            start = end;
        }
        f(&lines);
    }
}

/// A line without its end; none where it is blank.
fn text(bytes: &[u8]) -> Result<Option<&str>, Vec<String>> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.trim().is_empty() => Ok(None),
        Ok(text) => Ok(Some(text.trim_end_matches(['\n', '\r']))),
        Err(e) => Err(vec![format!("not UTF-8 text from its byte {} on", e.valid_up_to())]),
    }
}

fn of_line(line: usize, found: Result<(), Vec<String>>) -> impl Iterator<Item = Problem> {
    found.err().unwrap_or_default().into_iter().map(move |message| Problem { line, message })
}

/// What a file that is no text seems to be, by its beginning.
fn binary(start: &[u8]) -> Option<&'static str> {
    // The length of a header of JSON, and the header.
    let is_safetensors = start.get(3..9).is_some_and(|bytes| bytes == b"\0\0\0\0\0{");
    Some(match start {
        [b'G', b'G', b'U', b'F', ..] => "a GGUF file",
        _ if is_safetensors => "a safetensors file",
        [0x1f, 0x8b, ..] => "a compressed file (gzip)",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a compressed file (zstd)",
        [b'P', b'K', 3, 4, ..] => "a zip archive",
        [b'P', b'A', b'R', b'1', ..] => "a Parquet file",
        // One within good lines is a problem of its line.
        _ if start.iter().take_while(|byte| **byte != b'\n').any(|byte| *byte == 0) => "a binary file",
        _ => return None,
    })
}

/// Calls `f` with every non-blank line of a file; an error of `f` gets file and line number.
///
/// # Errors
/// If the file cannot be read, or `f` fails.
pub fn for_each_line(path: &Path, mut f: impl FnMut(&str) -> Result<()>) -> Result<()> {
    let problems = scan(path, |_, line| f(line).map_err(|error| vec![format!("{error:#}")]))?;
    refuse(path, &problems)
}

/// The first problem as an error, with how many more there are.
///
/// # Errors
/// If there is any.
pub fn refuse(path: &Path, problems: &[Problem]) -> Result<()> {
    let Some(first) = problems.first() else { return Ok(()) };
    let more = match problems.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more; `bayesteach validate` lists the problems of episode files)"),
    };
    bail!("{}, line {}: {}{more}", path.display(), first.line, first.message)
}

/// JSON of one line, or what is wrong with it.
pub(crate) fn parse_json<T: serde::de::DeserializeOwned>(line: &str) -> Result<T, Vec<String>> {
    // The line is told already, and is not serde's first one.
    serde_json::from_str(line).map_err(|e| {
        let text = e.to_string();
        let place = format!(" at line {} column {}", e.line(), e.column());
        let text =
            text.strip_suffix(&place).map_or(text.clone(), |t| format!("{t} at column {}", e.column()));
        vec![with_nearest_key(&text).replace('\n', "; ")]
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of several parts, with blank lines, a line longer than a part, one that is no text, and no end of line at the
    /// end.
    #[test]
    fn lines_keep_their_numbers_and_order_in_every_part() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("lines");
        let mut bytes = Vec::new();
        let mut expected = Vec::new();
        for number in 1..=60_000_usize {
            match number {
                _ if number.is_multiple_of(1000) => bytes.extend(b" \r\n"),
                30_001 => bytes.extend(b"a\xff\n"),
                _ => {
                    let line =
                        format!("{number} {}", "x".repeat(if number == 40_001 { 5 << 20 } else { 200 }));
                    bytes.extend(line.as_bytes());
                    bytes.extend(if number.is_multiple_of(2) { b"\r\n".as_slice() } else { b"\n" });
                    expected.push((number, line.len()));
                }
            }
        }
        bytes.extend(b"last");
        expected.push((60_001, 4));
        std::fs::write(&path, &bytes).expect("a file can be written");

        let refuse_some = |number: usize| if number == 50_001 { Err(vec!["no".into()]) } else { Ok(()) };
        let mut one_by_one = Vec::new();
        let problems = scan(&path, |number, line| {
            one_by_one.push((number, line.len()));
            refuse_some(number)
        });
        let mut taken = Vec::new();
        let in_parallel = scan_in_parallel(
            &path,
            |_, line| Ok(line.len()),
            |number, length| {
                taken.push((number, length));
                refuse_some(number)
            },
        );
        assert_eq!(one_by_one, expected);
        assert_eq!(taken, expected);
        let wanted = [(30_001, "not UTF-8 text from its byte 1 on"), (50_001, "no")];
        let wanted = wanted.map(|(line, message)| Problem { line, message: message.into() });
        assert_eq!(problems.expect("the file can be read"), wanted);
        assert_eq!(in_parallel.expect("the file can be read"), wanted);
        let failing = scan_in_parallel(&path, |_, _| Err::<(), _>(vec!["no".into()]), |_, ()| Ok(()));
        assert_eq!(failing.expect("the file can be read").len(), expected.len() + 1);
    }
}
