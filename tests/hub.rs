//! Folders, the hub's cache, and a stand-in for the hub on this machine.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bayesteach::error::UsageError;
use bayesteach::hub::{Files, HubSettings, resolve};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

fn settings(cache: &Path) -> HubSettings {
    HubSettings {
        cache: cache.to_owned(),
        token: None,
        offline: true,
        endpoint: None,
        progress: false,
        silence: Duration::from_secs(60),
    }
}

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

fn model_files(folder: &Path) {
    for name in ["config.json", "tokenizer.json"] {
        write(&folder.join(name), "{}");
    }
}

fn error_of<T: std::fmt::Debug>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.unwrap_err())
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn folders_are_taken_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().to_str().unwrap();
    let settings = settings(folder.path());
    let find = |files| resolve(source, None, files, &settings);
    assert_says(&error_of(find(Files::Tokenizer)), &["no config.json"]);
    model_files(folder.path());
    let snapshot = find(Files::Tokenizer).unwrap();
    assert_eq!((snapshot.dir.as_path(), snapshot.name.as_str()), (folder.path(), source));
    assert_eq!(snapshot.revision, None);

    assert_says(&error_of(find(Files::All)), &["neither model.safetensors nor"]);
    let index = folder.path().join("model.safetensors.index.json");
    write(
        &index,
        r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-1.safetensors"}}"#,
    );
    write(&folder.path().join("model-1.safetensors"), "");
    assert_says(&error_of(find(Files::All)), &["no model-2.safetensors"]);
    write(&folder.path().join("model-2.safetensors"), "");
    find(Files::All).unwrap();
    for (bad, expected) in [
        ("{", "not valid JSON"),
        ("{}", "no weight_map"),
        (r#"{"weight_map": {}}"#, "empty"),
        (r#"{"weight_map": {"a": "../secret"}}"#, "outside its folder"),
    ] {
        write(&index, bad);
        assert_says(&error_of(find(Files::All)), &[expected]);
    }
    assert_says(&error_of(resolve(source, Some("v2"), Files::Tokenizer, &settings)), &["no revisions"]);
}

#[test]
fn sources_that_are_nothing() {
    let folder = tempfile::tempdir().unwrap();
    for source in [
        "",
        "gpt2",
        "./no/such",
        "/no/such",
        "a/b/c",
        "a/../b",
        "a b/c",
        "../b",
        "org/name@../x",
        "org/name@",
    ] {
        let error = resolve(source, None, Files::All, &settings(folder.path())).unwrap_err();
        assert!(error.chain().any(|cause| cause.is::<UsageError>()), "{source:?}: {error:#}");
    }
    let both = error_of(resolve("org/name@a", Some("b"), Files::All, &settings(folder.path())));
    assert_says(&both, &["\"a\"", "\"b\""]);
}

/// The layout that `huggingface_hub` writes: blobs, refs and snapshots of links.
fn cached_model(cache: &Path) {
    let model = cache.join("models--org--name");
    write(&model.join("refs/main"), COMMIT);
    write(&model.join("refs/v1"), COMMIT);
    let snapshot = model.join("snapshots").join(COMMIT);
    std::fs::create_dir_all(&snapshot).unwrap();
    for (name, blob) in [("config.json", "c0"), ("tokenizer.json", "70"), ("model.safetensors", "5a")] {
        write(&model.join("blobs").join(blob), name);
        #[cfg(unix)]
        std::os::unix::fs::symlink(Path::new("../../blobs").join(blob), snapshot.join(name)).unwrap();
        #[cfg(not(unix))]
        std::fs::copy(model.join("blobs").join(blob), snapshot.join(name)).unwrap();
    }
}

#[test]
fn the_cache_is_enough_when_offline() {
    let cache = tempfile::tempdir().unwrap();
    cached_model(cache.path());
    let settings = settings(cache.path());
    for (source, revision) in [
        ("org/name", None),
        ("org/name@v1", None),
        ("org/name", Some("v1")),
        ("org/name@main", Some("main")),
        (&format!("org/name@{COMMIT}"), None),
    ] {
        let snapshot = resolve(source, revision, Files::All, &settings).unwrap();
        assert_eq!((snapshot.name.as_str(), snapshot.revision.as_deref()), ("org/name", Some(COMMIT)));
        assert_eq!(std::fs::read_to_string(snapshot.dir.join("config.json")).unwrap(), "config.json");
    }
    for source in ["org/other", "org/name@v2"] {
        assert_says(&error_of(resolve(source, None, Files::All, &settings)), &["HF_HUB_OFFLINE", "cache"]);
    }
    // A dangling link, as an interrupted download leaves it, is no model.
    std::fs::remove_file(cache.path().join("models--org--name/blobs/5a")).unwrap();
    assert_says(
        &error_of(resolve("org/name", None, Files::All, &settings)),
        &["not (completely) in the cache"],
    );
    resolve("org/name", None, Files::Tokenizer, &settings).unwrap();
}

/// What other programs left of a model is completed, once; offline it is used as it is.
#[test]
fn a_partly_cached_snapshot_is_completed() {
    let whole = HashMap::from([
        ("config.json", "config.json"),
        ("tokenizer.json", "tokenizer.json"),
        ("tokenizer_config.json", "{\"chat_template\": \"x\"}"),
        ("model.safetensors", "model.safetensors"),
    ]);
    let (address, log) = hub(whole);
    let cache = tempfile::tempdir().unwrap();
    cached_model(cache.path());
    let offline = settings(cache.path());
    let snapshot = resolve("org/name", None, Files::All, &offline).unwrap();
    assert!(!snapshot.dir.join("tokenizer_config.json").exists());
    let dead = HubSettings { offline: false, endpoint: Some("http://127.0.0.1:9".into()), ..offline.clone() };
    assert_eq!(resolve("org/name", None, Files::All, &dead).unwrap(), snapshot);

    let online = HubSettings { offline: false, endpoint: Some(address), ..offline };
    let found = resolve("org/name", None, Files::All, &online).unwrap();
    assert_eq!((found.dir.as_path(), found.revision.as_deref()), (snapshot.dir.as_path(), Some(COMMIT)));
    assert!(found.dir.join("tokenizer_config.json").is_file());
    assert!(!log.lock().unwrap().iter().any(|path| path.contains("model.safetensors")));
    // What the model does not have is known from then on, as `huggingface_hub` notes it too.
    let absent = cache.path().join("models--org--name/.no_exist").join(COMMIT);
    assert!(absent.join("generation_config.json").is_file());
    let requests = log.lock().unwrap().len();
    resolve("org/name", None, Files::All, &online).unwrap();
    assert_eq!(log.lock().unwrap().len(), requests);
}

#[test]
fn a_broken_download_goes_on_where_it_stopped() {
    let text = "0123456789 all of the weights";
    let files = HashMap::from([("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", text)]);
    let (address, log) = hub(files);
    // The etag of this hub ends like a file's name, and the part's name replaces that.
    for part in ["", "0123456789 all", text, "0123456789 all of the weights and more"] {
        let cache = tempfile::tempdir().unwrap();
        let settings =
            HubSettings { offline: false, endpoint: Some(address.clone()), ..settings(cache.path()) };
        write(&cache.path().join("models--org--name/blobs/model.part"), part);
        log.lock().unwrap().clear();
        let snapshot = resolve("org/name", None, Files::All, &settings).unwrap();
        assert_eq!(
            std::fs::read_to_string(snapshot.dir.join("model.safetensors")).unwrap(),
            text,
            "{part:?}"
        );
    }
    // Of a part, only the rest was asked for.
    let (address, log) =
        hub(HashMap::from([("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", text)]));
    let cache = tempfile::tempdir().unwrap();
    write(&cache.path().join("models--org--name/blobs/model.part"), &text[..14]);
    let settings = HubSettings { offline: false, endpoint: Some(address), ..settings(cache.path()) };
    resolve("org/name", None, Files::All, &settings).unwrap();
    let asked = log.lock().unwrap().iter().filter(|path| path.ends_with("model.safetensors from 14")).count();
    assert_eq!(asked, 1, "{:?}", log.lock().unwrap());
}

#[test]
fn a_file_that_comes_short_is_not_kept() {
    let (address, _) = hub(HashMap::from([
        ("config.json", "{}"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "cut short by the hub"),
    ]));
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { offline: false, endpoint: Some(address), ..settings(cache.path()) };
    resolve("org/name", None, Files::Tokenizer, &settings).unwrap();
    let error = error_of(resolve("org/name", None, Files::All, &settings));
    assert_says(&error, &["model.safetensors", "bytes of", "try once more"]);
    assert!(!cache.path().join("models--org--name/blobs/model.safetensors-etag").exists());
}

#[test]
fn a_download_that_stalls_is_given_up() {
    let files =
        [("config.json", "{}"), ("tokenizer.json", "{}"), ("model.safetensors", "stalls in the middle")];
    let (address, _) = hub(HashMap::from(files));
    let cache = tempfile::tempdir().unwrap();
    let silence = Duration::from_millis(400);
    let settings = HubSettings { offline: false, endpoint: Some(address), silence, ..settings(cache.path()) };
    let begun = Instant::now();
    let error = error_of(resolve("org/name", None, Files::All, &settings));
    assert_says(&error, &["stalled", "model.safetensors", "0.4 s", "same command again", "where it stopped"]);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let part = cache.path().join("models--org--name/blobs/model.part");
    assert_eq!(std::fs::read_to_string(part).unwrap(), "stalls");
    // Nobody answers at all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Some(format!("http://{}", silent.local_addr().unwrap()));
    let error = error_of(resolve("org/other", None, Files::All, &HubSettings { endpoint, ..settings }));
    assert_says(&error, &["stalled", "list of files"]);
}

#[test]
fn a_repository_of_gguf_files_says_how_to_go_on() {
    let (address, log) =
        hub(HashMap::from([("config.json", "{}"), ("model-q4.gguf", "GGUF"), ("model-q8.gguf", "GGUF")]));
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { offline: false, endpoint: Some(address), ..settings(cache.path()) };
    let error = error_of(resolve("org/name", None, Files::All, &settings));
    assert_says(
        &error,
        &[".gguf and 1 more", "no tokenizer.json", "no model.safetensors", "hf download", "path"],
    );
    assert_eq!(log.lock().unwrap().len(), 1, "nothing is downloaded in vain");
}

type Log = Arc<Mutex<Vec<String>>>;

/// Serves `org/name` and refuses `org/gated`; returns its address and the requests that it gets.
fn hub(files: HashMap<&'static str, &'static str>) -> (String, Log) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let log = Log::default();
    let requests = Arc::clone(&log);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            answer_request(stream, &files, &requests);
        }
    });
    (address, log)
}

fn answer_request(mut stream: TcpStream, files: &HashMap<&'static str, &'static str>, log: &Log) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while reader.read_line(&mut head).unwrap() > 2 {}
    let path = head.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let authorised = head.to_lowercase().contains("authorization: bearer secret");
    let range =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
    let from = range.as_deref().and_then(|range| range.split('-').next()).filter(|from| *from != "0");
    log.lock().unwrap().push(from.map_or(path.clone(), |from| format!("{path} from {from}")));
    let name = path.rsplit('/').next().unwrap_or_default();
    let (status, body) = if path.contains("gated") && !authorised {
        ("401 Unauthorized", String::new())
    } else if ["main", COMMIT].iter().any(|r| path.starts_with(&format!("/api/models/org/name/revision/{r}")))
    {
        let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
        ("200 OK", serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string())
    } else if let Some(body) = files.get(name).filter(|_| path.contains(&format!("/resolve/{COMMIT}/"))) {
        ("206 Partial Content", (*body).to_owned())
    } else {
        ("404 Not Found", String::new())
    };
    let size = body.len();
    let (first, last) = match range.as_deref().and_then(|range| range.trim().split_once('-')) {
        Some((first, last)) => {
            (first.parse().unwrap_or(0), last.parse::<usize>().map_or(size, |last| last + 1))
        }
        None => (0, size),
    };
    let mut part = &body[first.min(size)..last.min(size)];
    // Not the first request, which only asks how much there is.
    if body.starts_with("cut short") && part.len() > 1 {
        part = &part[..part.len() - 5];
    }
    let promised = part.len();
    if body.starts_with("stalls") && part.len() > 1 {
        part = &part[..6];
    }
    let response = format!(
        "HTTP/1.1 {status}\r\nx-repo-commit: {COMMIT}\r\netag: \"{name}-etag\"\r\ncontent-range: bytes {first}-{last}/{size}\r\n\
         content-length: {promised}\r\nconnection: close\r\n\r\n{part}"
    );
    let _ = stream.write_all(response.as_bytes());
    if body.starts_with("stalls") && part.len() > 1 {
        // The rest is promised and never comes.
        let _ = stream.flush();
        std::thread::sleep(Duration::from_secs(30));
    }
}

#[test]
fn models_are_downloaded_once_whole_and_of_one_commit() {
    let (address, log) = hub(HashMap::from([
        ("config.json", "{}"),
        ("tokenizer.json", "{\"a\": 1}"),
        ("chat_template.jinja", "x"),
        ("pytorch_model.bin", "not wanted"),
        (
            "model.safetensors.index.json",
            r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#,
        ),
        ("model-1.safetensors", "one"),
        ("model-2.safetensors", "two"),
    ]));
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { offline: false, endpoint: Some(address), ..settings(cache.path()) };
    let small = resolve("org/name", None, Files::Tokenizer, &settings).unwrap();
    assert_eq!(std::fs::read_to_string(small.dir.join("chat_template.jinja")).unwrap(), "x");
    assert!(!log.lock().unwrap().iter().any(|path| path.contains("safetensors")));

    let all = resolve("org/name", None, Files::All, &settings).unwrap();
    assert_eq!(all, small);
    assert_eq!(all.revision.as_deref(), Some(COMMIT));
    assert_eq!(std::fs::read_to_string(all.dir.join("model-2.safetensors")).unwrap(), "two");
    assert!(!all.dir.join("pytorch_model.bin").exists());

    let requests = log.lock().unwrap().len();
    let offline = HubSettings { offline: true, ..settings.clone() };
    assert_eq!(resolve("org/name@main", None, Files::All, &offline).unwrap(), all);
    assert_eq!(resolve("org/name", None, Files::All, &settings).unwrap(), all);
    assert_eq!(log.lock().unwrap().len(), requests, "what is in the cache needs no request");
}

#[test]
fn refusals_say_what_to_do() {
    let (address, _) = hub(HashMap::from([("config.json", "{}"), ("tokenizer.json", "{}")]));
    let cache = tempfile::tempdir().unwrap();
    let settings = HubSettings { offline: false, endpoint: Some(address), ..settings(cache.path()) };
    let find = |source: &str, settings: &HubSettings| error_of(resolve(source, None, Files::All, settings));
    assert_says(&find("org/gated", &settings), &["org/gated", "gated", "HF_TOKEN"]);
    let wrong = HubSettings { token: Some("wrong".into()), ..settings.clone() };
    assert_says(&find("org/gated", &wrong), &["your token does not open it"]);
    assert_says(&find("org/absent", &settings), &["org/absent", "not on the hub", "spelling"]);
    assert_says(&find("org/name@v9", &settings), &["revision v9", "not on the hub"]);
    assert_says(&find("org/name", &settings), &["neither model.safetensors nor"]);
    // Nothing listens on the discard port.
    let dead = HubSettings { endpoint: Some("http://127.0.0.1:9".into()), ..settings };
    assert_says(&find("org/unseen", &dead), &["cannot download", "network"]);
}
