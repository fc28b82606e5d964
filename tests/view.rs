//! The pages of `view`, as plain HTTP: runs are followed, live dialogues held and saved, and nobody else is served.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::io::{BufRead as _, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use bayesteach::episode;
use common::Place;
use serde_json::{Value, json};

/// A server of its own, which ends with the test.
struct Server {
    child: Child,
    port: u16,
}

impl Server {
    fn start(place: &Place, words: &[&str]) -> Self {
        let words: Vec<&str> = ["view"].iter().chain(words).chain(&["--port", "0"]).copied().collect();
        let mut child = place.command_of(&words).stdout(Stdio::piped()).spawn().unwrap();
        let mut told = String::new();
        std::io::BufReader::new(child.stdout.take().unwrap()).read_line(&mut told).unwrap();
        let port = told.trim_start_matches("http://127.0.0.1:").split('/').next().unwrap().parse().unwrap();
        Self { child, port }
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The status and everything after the status line.
    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
    }

    fn get(&self, path: &str, host: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"))
    }

    fn post(&self, path: &str, headers: &str, body: &str) -> (u16, String) {
        let (host, length) = (self.host(), body.len());
        self.ask(&format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n{headers}Connection: close\r\n\r\n{body}"
        ))
    }

    /// What the belief page is told, which must go well.
    fn told(&self, path: &str, body: &Value) -> Value {
        let origin = format!("Origin: http://{}\r\nContent-Type: application/json\r\n", self.host());
        let (status, answer) = self.post(path, &origin, &body.to_string());
        assert_eq!(status, 200, "{answer}");
        serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn distribution(value: &Value, options: usize) -> Vec<f64> {
    let probs: Vec<f64> = value.as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
    assert_eq!(probs.len(), options, "{value}");
    assert!((probs.iter().sum::<f64>() - 1.0).abs() < 1e-6 && probs.iter().all(|p| *p >= 0.0), "{value}");
    probs
}

#[test]
fn runs_are_followed_on_this_machine_only() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=3");
    place.ok("run c.toml --set train.max_steps=2 --set run.name=b");
    place.write("runs/<b>/notes", "");
    place.fails("view nowhere", 2, &["nowhere"]);
    let server = Server::start(&place, &["runs/a", "runs/<b>", "runs/b"]);
    let own = server.host();

    let (status, page) = server.get("/", &own);
    assert!(status == 200 && page.contains("Content-Security-Policy"), "{page}");
    let (_, runs) = server.get("/runs", &own);
    for part in ["3 of 3", "finished", "/report/0", "/belief/0", "<svg", "Loss"] {
        assert!(runs.contains(part), "{part} is not in {runs}");
    }
    // A folder without a run says so, and its name stays text.
    assert!(runs.contains("&lt;b&gt;") && !runs.contains("<b>") && runs.contains("no run directory"));
    // Both were measured on the same episodes, and so are compared.
    let accuracy = place.json("runs/b/eval.json")["fine_tuned"]["accuracy"].as_f64().unwrap();
    let compared = &runs[runs.find("Side by side").unwrap()..];
    assert!(
        compared.contains(&format!("{accuracy:.3} <span")) && compared.contains("<th scope=\"col\">b</th>")
    );
    assert!(server.get("/report/0", &own).1.contains("Learning from answers"));
    for (path, host, expected) in [
        ("/report/1", own.as_str(), 404),
        ("/report/9", &own, 404),
        ("/belief/1", &own, 404),
        ("/../c.toml", &own, 404),
        ("/belief/0/look", &own, 404),
        ("/", "example.org", 403),
        ("/runs", "example.org:80", 403),
        ("/", "", 403),
    ] {
        let (status, answer) = server.get(path, host);
        assert_eq!(status, expected, "{path} of {host}: {answer}");
    }
    let other = format!("DELETE / HTTP/1.1\r\nHost: {own}\r\nConnection: close\r\n\r\n");
    assert_eq!(server.ask(&other).0, 405);
}

/// Predictions are the teacher's: before any answer, those of the graded response model's uniform prior (`teaching.md`
/// B.4: .289 on the most probable answers of a first item, entropy 1.546).
#[test]
fn a_visitor_is_believed_something_and_saved() {
    let place = Place::new();
    place.ok("run c.toml --set train.max_steps=3");
    let server = Server::start(&place, &["runs/a", "--save", "people.jsonl", "--probes", "2"]);
    let (status, page) = server.get("/belief/0", &server.host());
    assert!(status == 200 && page.contains("data-model=\"true\""), "{page}");

    let look = |answers: &[usize], model: bool| {
        server.told(
            "/belief/0/look",
            &json!({"seed": 1, "evidence": "eig", "answers": answers, "model": model}),
        )
    };
    let first = look(&[], false);
    assert_eq!((first["answers"].as_u64(), first["rounds"].as_u64()), (Some(0), Some(4)));
    assert!(first["task"].as_str().unwrap().contains("from 1 (very inaccurate)"));
    let teacher = distribution(&first["question"]["teacher"], 5);
    let entropy: f64 = teacher.iter().map(|p| -p * p.ln()).sum();
    assert!((teacher[0] - 0.289).abs() < 1e-3 && (entropy - 1.546).abs() < 1e-3, "{teacher:?}");
    // An item is worth .543 nats at a uniform prior (B.5), and five traits of five levels are 5 ln 5.
    assert!((first["question"]["expected_gain"].as_f64().unwrap() - 0.543).abs() < 1e-3);
    assert!((first["entropy"].as_f64().unwrap() - 5.0 * 5_f64.ln()).abs() < 1e-9);
    assert!(first["question"]["model"].is_null() && first["beliefs"].as_array().unwrap().len() == 5);

    // The model has its say, and its say is the same whatever was asked of it in between.
    let second = look(&[4, 0], true);
    assert!(second["entropy"].as_f64().unwrap() < first["entropy"].as_f64().unwrap() - 0.9);
    distribution(&second["question"]["model"], 5);
    for belief in second["beliefs"].as_array().unwrap() {
        for who in ["teacher", "implied", "stated"] {
            distribution(&belief[who], 5);
        }
    }
    look(&[1, 1, 1], true);
    let again = look(&[4, 0], true);
    for (a, b) in
        distribution(&second["question"]["model"], 5).iter().zip(distribution(&again["question"]["model"], 5))
    {
        assert!((a - b).abs() < 1e-5);
    }
    assert!(look(&[4, 0, 2, 2], true)["question"].is_null());

    for (n, user) in [(1, ""), (2, "Ada <3")] {
        let body = json!({"seed": 1, "evidence": "eig", "answers": [4, 0, 2, 2], "user": user});
        let saved = server.told("/belief/0/save", &body);
        assert_eq!(saved, json!({"file": "people.jsonl", "episodes": n}));
    }
    let people = episode::read(&place.path("people.jsonl")).unwrap();
    let truths: Vec<_> = people[0].answers().map(|(answer, _)| answer.truth.unwrap()).collect();
    assert_eq!(truths, [4, 0, 2, 2]);
    assert_eq!((people[0].user.as_str(), people[1].user.as_str()), ("person-0", "Ada <3"));
    let measured = place.ok("eval --model base --adapter runs/a/adapter --episodes people.jsonl");
    assert!(measured.contains("8 answers in 2 episodes"), "{measured}");
}

#[test]
fn what_other_sites_or_broken_pages_send_is_refused() {
    let place = Place::new();
    place.ok("train c.toml --set train.max_steps=1");
    let server = Server::start(&place, &["runs/a"]);
    let good = json!({"seed": 1, "evidence": "random", "answers": [0]}).to_string();
    let kind = "Content-Type: application/json\r\n";
    for (headers, expected) in [
        (kind.to_owned(), 200),
        (format!("{kind}Origin: http://{}\r\nSec-Fetch-Site: same-origin\r\n", server.host()), 200),
        (format!("{kind}Origin: http://example.org\r\n"), 403),
        (format!("{kind}Origin: null\r\n"), 403),
        (format!("{kind}Origin: https://{}\r\n", server.host()), 403),
        (format!("{kind}Sec-Fetch-Site: cross-site\r\n"), 403),
        ("Content-Type: text/plain\r\n".to_owned(), 403),
        (String::new(), 403),
    ] {
        let (status, answer) = server.post("/belief/0/look", &headers, &good);
        assert_eq!(status, expected, "{headers}: {answer}");
        let (status, _) = server.post("/belief/0/save", &headers, &good);
        assert_eq!(status, expected, "{headers}");
    }
    let long = format!("{{\"seed\": {}1}}", " ".repeat(70_000));
    for (body, expected, part) in [
        ("", 400, "not what the page sends"),
        ("{\"seed\": 1}", 400, "missing field"),
        ("{\"seed\": -1, \"evidence\": \"eig\", \"answers\": []}", 400, "invalid"),
        ("{\"seed\": 1, \"evidence\": \"eig\", \"answers\": [], \"more\": 1}", 400, "more"),
        ("{\"seed\": 1, \"evidence\": \"eig\", \"answers\": [7]}", 422, "has 5"),
        ("{\"seed\": 1, \"evidence\": \"eig\", \"answers\": [1, 1, 1, 1, 1]}", 422, "the session is over"),
        (long.as_str(), 413, "too long"),
    ] {
        let (status, answer) = server.post("/belief/0/look", kind, body);
        assert!(status == expected && answer.contains(part), "{body}: {answer}");
    }
    let nothing = json!({"seed": 1, "evidence": "eig", "answers": []}).to_string();
    let (status, answer) = server.post("/belief/0/save", kind, &nothing);
    assert!(status == 422 && answer.contains("nothing was answered"), "{answer}");
    assert_eq!(server.post("/belief/7/look", kind, &good).0, 404);
}
