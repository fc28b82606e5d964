//! TensorBoard's event file beside `metrics.jsonl`, which it is a function of: opening the log of a resumed run makes
//! it anew from the lines that are kept, so that no step stands in it twice.
//!
//! An event file is a list of TFRecords (length, checksum, bytes, checksum), each an `Event` message of TensorFlow's
//! `event.proto` in protobuf's encoding, of which a few fields are enough.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use crate::files;

/// The file's name within a run. TensorBoard knows event files by `tfevents`.
pub const FILE: &str = "events.out.tfevents.0.bayesteach";

/// An event file that is being written; empty until its first event.
pub struct EventFile {
    file: File,
    begun: bool,
}

impl EventFile {
    /// Writes the events of these lines of `metrics.jsonl`, in place of what was there.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn create(run_dir: &Path, records: &[Map<String, Value>]) -> Result<Self> {
        let path = run_dir.join(FILE);
        let mut bytes = Vec::new();
        records.iter().for_each(|line| put_events(&mut bytes, line));
        files::write(&path, &bytes)?;
        let file = File::options().append(true).open(&path);
        let file = file.with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { file, begun: !records.is_empty() })
    }

    /// Appends the event of one line.
    ///
    /// # Errors
    /// If the disk fails.
    pub fn append(&mut self, line: &Map<String, Value>) -> Result<()> {
        let mut bytes = Vec::new();
        if self.begun {
            bytes.extend(record(&event(line)));
        } else {
            put_events(&mut bytes, line);
        }
        self.begun = true;
        self.file.write_all(&bytes).with_context(|| format!("cannot write {FILE}"))
    }
}

/// The event of a line, after the version where it is the first.
fn put_events(out: &mut Vec<u8>, line: &Map<String, Value>) {
    if out.is_empty() {
        out.extend(record(&version(time(line))));
    }
    out.extend(record(&event(line)));
}

/// The tag of a number in `metrics.jsonl`: `train/loss`, `eval/kl`.
fn tag(name: &str) -> String {
    match (name, name.strip_prefix("validation_")) {
        ("lr", _) => "train/learning_rate".into(),
        (_, Some(measure)) => format!("eval/{measure}"),
        (_, None) => format!("train/{name}"),
    }
}

fn time(line: &Map<String, Value>) -> f64 {
    line.get("time").and_then(Value::as_f64).unwrap_or(0.0)
}

/// `Event { wall_time, step, summary: { value: [{ tag, simple_value }, …] } }`
fn event(line: &Map<String, Value>) -> Vec<u8> {
    let mut summary = Vec::new();
    for (name, value) in line.iter().filter(|(name, _)| !["step", "time"].contains(&name.as_str())) {
        if let Some(value) = value.as_f64() {
            let mut entry = Vec::new();
            put_bytes(&mut entry, 1, tag(name).as_bytes());
            entry.push(2 << 3 | FIXED_32);
            entry.extend((value as f32).to_le_bytes());
            put_bytes(&mut summary, 1, &entry);
        }
    }
    let mut event = vec![1 << 3 | FIXED_64];
    event.extend(time(line).to_le_bytes());
    event.push(2 << 3 | VARINT);
    put_varint(&mut event, line.get("step").and_then(Value::as_u64).unwrap_or(0));
    put_bytes(&mut event, 5, &summary);
    event
}

/// `Event { wall_time, file_version: "brain.Event:2" }`, the first of every file.
fn version(time: f64) -> Vec<u8> {
    let mut event = vec![1 << 3 | FIXED_64];
    event.extend(time.to_le_bytes());
    put_bytes(&mut event, 3, b"brain.Event:2");
    event
}

const VARINT: u8 = 0;
const FIXED_64: u8 = 1;
const BYTES: u8 = 2;
const FIXED_32: u8 = 5;

fn put_bytes(out: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    out.push(field << 3 | BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

/// Seven bits a byte, the lowest first; the eighth says that more follow.
fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// A TFRecord.
fn record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = length.to_vec();
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_crc(bytes).to_le_bytes());
    record
}

/// Checksums of bytes that hold checksums are poor, so TensorFlow rotates them and adds a constant.
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), a bit at a time: a step's record has a few hundred bytes.
fn crc32c(bytes: &[u8]) -> u32 {
    let shift = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), shift))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    /// The check value of the catalogue of CRC algorithms, and the vectors of RFC 3720, B.4.
    #[test]
    fn checksums_are_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// Every event file of TensorFlow begins with these bytes: the length 24 and its checksum.
    #[test]
    fn files_begin_as_tensorflows() {
        let first = record(&version(1.0));
        assert_eq!(&first[..12], [24, 0, 0, 0, 0, 0, 0, 0, 0xa3, 0x7f, b'K', b'"']);
        assert_eq!(&first[21..36], b"\x1a\x0dbrain.Event:2");
    }

    #[test]
    fn an_event_by_hand() {
        let line = serde_json::json!({"step": 300, "loss": 0.5, "time": 1.0});
        let expected: &[u8] =
            b"\x09\0\0\0\0\0\0\xf0\x3f\x10\xac\x02\x2a\x13\x0a\x11\x0a\x0atrain/loss\x15\0\0\0\x3f";
        assert_eq!(event(line.as_object().unwrap()), expected);
        assert_eq!(tag("validation_kl_vocabulary"), "eval/kl_vocabulary");
    }
}
