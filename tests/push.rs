//! `push` against a server on this machine that plays the hub's part, as `huggingface_hub` knows it.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use common::{Done, Place};
use serde_json::{Value, json};

const TOKEN: &str = "hf_secret";

/// What a server was asked, in order.
#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Asked {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

struct Hub {
    port: u16,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Hub {
    /// `answer` gets what was asked and the server's own address, and gives status and body.
    fn start(answer: impl Fn(&Asked, &str) -> (u16, String) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let Some(one) = read(&stream) else { continue };
                let (status, body) = answer(&one, &format!("http://127.0.0.1:{port}"));
                kept.lock().unwrap().push(one);
                let length = body.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Said\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                );
            }
        });
        Self { port, asked }
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// Runs `push` with this hub.
    fn push(&self, place: &Place, words: &str) -> Done {
        let mut command = place.command(&format!("push {words}"));
        command.env("HF_ENDPOINT", format!("http://127.0.0.1:{}/", self.port));
        command.env("HF_TOKEN", TOKEN).env("HF_HUB_OFFLINE", "0").output().unwrap().into()
    }
}

fn read(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok().filter(|n| *n > 0)?;
    let mut headers = BTreeMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").map_or(0, |n| n.parse().unwrap());
    assert!(!headers.contains_key("transfer-encoding"), "storage wants to know the length beforehand");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    Some(Asked { line: line.trim_end().trim_end_matches(" HTTP/1.1").to_owned(), headers, body })
}

/// A hub that takes everything: safetensors and tokenizers go to LFS.
fn willing(asked: &Asked, own: &str) -> (u16, String) {
    let told = match asked.line.as_str() {
        "POST /api/repos/create" => json!({"url": format!("{own}/me/mine")}),
        "POST /api/models/me/mine/preupload/main" => {
            let mode = |file: &Value| {
                let path = file["path"].as_str().unwrap();
                let large = path.ends_with(".safetensors") || path == "tokenizer.json";
                json!({"path": path, "uploadMode": if large { "lfs" } else { "regular" }, "shouldIgnore": false})
            };
            let files: Vec<Value> = asked.json()["files"].as_array().unwrap().iter().map(mode).collect();
            json!({"files": files})
        }
        "POST /me/mine.git/info/lfs/objects/batch" => {
            let object = |object: &Value| {
                let oid = object["oid"].as_str().unwrap();
                json!({"oid": oid, "size": object["size"], "actions": {
                    "upload": {"href": format!("{own}/storage/{oid}?signed=1"), "header": {"X-Kind": "part"}},
                    "verify": {"href": format!("{own}/me/mine.git/info/lfs/objects/verify")},
                }})
            };
            let objects: Vec<Value> =
                asked.json()["objects"].as_array().unwrap().iter().map(object).collect();
            json!({"transfer": "basic", "objects": objects})
        }
        "POST /api/models/me/mine/commit/main" => {
            json!({"commitUrl": format!("{own}/me/mine/commit/abc"), "commitOid": "abc"})
        }
        _ => json!({}),
    };
    (200, told.to_string())
}

fn trained() -> Place {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=1");
    place
}

#[test]
fn an_adapter_is_uploaded_with_its_card() {
    let place = trained();
    let hub = Hub::start(willing);
    let done = hub.push(&place, "runs/a me/mine --private");
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(done.stdout.trim_end().ends_with("/me/mine/commit/abc"), "{}", done.stdout);
    assert!(!done.stdout.contains(TOKEN) && !done.stderr.contains(TOKEN));
    let asked = hub.asked();
    let lines: Vec<&str> = asked.iter().map(|one| one.line.as_str()).collect();

    assert_eq!(lines[0], "POST /api/repos/create");
    let create = json!({"name": "mine", "organization": "me", "type": "model", "private": true});
    assert_eq!(asked[0].json(), create);
    assert!(lines[1].contains("/preupload/") && lines[2].contains("/info/lfs/objects/batch"));
    assert!(lines.last().unwrap().contains("/commit/main"));

    // The commit names every file of the export; what is in LFS by its SHA-256, the rest by its bytes.
    place.ok("export runs/a --format peft --out exported");
    let commit = String::from_utf8(asked.last().unwrap().body.clone()).unwrap();
    let commit: Vec<Value> = commit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(commit[0]["key"], "header");
    assert_eq!(commit[0]["value"]["summary"], "Upload with bayesteach");
    let exported = place.files("exported");
    let told: Vec<&str> = commit[1..].iter().map(|line| line["value"]["path"].as_str().unwrap()).collect();
    assert_eq!(told, exported.keys().collect::<Vec<_>>());
    assert!(told.contains(&"README.md") && told.contains(&"adapter_model.safetensors"));
    let stored: BTreeMap<String, Vec<u8>> = (asked.iter())
        .filter_map(|one| {
            Some((one.line.strip_prefix("PUT /storage/")?.split('?').next()?.to_owned(), one.body.clone()))
        })
        .collect();
    for line in &commit[1..] {
        let (value, bytes) = (&line["value"], &exported[line["value"]["path"].as_str().unwrap()]);
        if line["key"] == "lfsFile" {
            let oid = value["oid"].as_str().unwrap();
            assert_eq!(oid, sha256sum(&place, bytes));
            assert_eq!((&stored[oid], value["size"].as_u64()), (bytes, Some(bytes.len() as u64)));
        } else {
            assert_eq!((line["key"].as_str(), value["encoding"].as_str()), (Some("file"), Some("base64")));
            assert_eq!(base64(bytes), value["content"].as_str().unwrap());
        }
    }
    // The token goes to the hub and to nobody else.
    for one in &asked {
        let has_token =
            one.headers.get("authorization").is_some_and(|value| value == &format!("Bearer {TOKEN}"));
        assert_eq!(has_token, !one.line.starts_with("PUT /storage/"), "{}", one.line);
    }
    let put = asked.iter().find(|one| one.line.starts_with("PUT")).unwrap();
    assert_eq!(put.headers["x-kind"], "part");
    assert!(lines.iter().filter(|line| line.ends_with("/verify")).count() == stored.len());

    // What export wrote goes as it is; a repository that is there is no error, and bytes that are there are not sent.
    let hub = Hub::start(|asked, own| match asked.line.as_str() {
        "POST /api/repos/create" => {
            (409, json!({"error": "You already created this model repo"}).to_string())
        }
        "POST /me/mine.git/info/lfs/objects/batch" => {
            (200, json!({"objects": asked.json()["objects"]}).to_string())
        }
        _ => willing(asked, own),
    });
    assert_eq!(hub.push(&place, "exported me/mine").code, Some(0));
    assert!(hub.asked().iter().all(|one| !one.line.starts_with("PUT")));
    assert_eq!(hub.asked()[0].json()["private"], false);
}

#[test]
fn what_cannot_be_uploaded_is_refused_politely() {
    let place = trained();
    place.fails("push runs/a me/mine", 2, &["HF_HUB_OFFLINE"]);
    let mut command = place.command("push runs/a me/mine");
    let done: Done = command.env("HF_HUB_OFFLINE", "0").output().unwrap().into();
    done.is_error("without a token", 2, &["no token", "HF_TOKEN", "hf auth login"]);
    let hub = Hub::start(willing);
    for (words, part) in [
        ("runs/a mine", "\"mine\""),
        ("runs/a a/b/c", "\"a/b/c\""),
        ("runs me/mine", "neither an adapter nor a model"),
        ("nowhere me/mine", "nowhere"),
    ] {
        hub.push(&place, words).is_error(words, 2, &[part]);
    }
    assert!(hub.asked().is_empty(), "{:?}", hub.asked());
    let refused = |line: &'static str, status: u16, body: &'static str, parts: &[&str]| {
        let hub = Hub::start(move |asked, own| {
            if asked.line.ends_with(line) { (status, body.to_owned()) } else { willing(asked, own) }
        });
        let done = hub.push(&place, "runs/a me/mine");
        done.is_error(line, 1, parts);
        assert!(!done.stderr.contains(TOKEN), "{}", done.stderr);
        assert!(!hub.asked().iter().any(|one| one.line.contains("/commit/")) || line == "/commit/main");
    };
    refused(
        "/create",
        401,
        r#"{"error": "Invalid username or password."}"#,
        &["401", "not valid", "Invalid username"],
    );
    refused("/create", 403, r#"{"error": "no rights"}"#, &["403", "write access"]);
    refused("/preupload/main", 200, "<html>", &["not JSON"]);
    refused("/preupload/main", 200, r#"{"files": []}"#, &["does not say how to store"]);
    refused("/objects/batch", 200, r#"{"objects": []}"#, &["does not say where to upload"]);
    refused("/verify", 500, "no", &["check", "500"]);
    refused("/commit/main", 413, "", &["413"]);
    // Nobody listens there.
    let mut command = place.command("push runs/a me/mine");
    command.env("HF_ENDPOINT", "http://127.0.0.1:1").env("HF_TOKEN", TOKEN).env("HF_HUB_OFFLINE", "0");
    Done::from(command.output().unwrap()).is_error("no hub", 1, &["cannot reach the hub", "127.0.0.1:1"]);
}

/// By coreutils.
fn sha256sum(place: &Place, bytes: &[u8]) -> String {
    place.write("bytes", bytes);
    let told = std::process::Command::new("sha256sum").arg(place.path("bytes")).output().unwrap();
    String::from_utf8(told.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

/// By the definition (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits =
            three.iter().chain([&0, &0]).take(3).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        for i in 0..4 {
            let six = (bits >> (18 - 6 * i)) & 63;
            text.push(if i <= three.len() { char::from(LETTERS[six as usize]) } else { '=' });
        }
    }
    text
}
