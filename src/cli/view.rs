//! `bayesteach view`: pages on this machine that follow runs and hold live dialogues.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};
use clap::Args;
use serde::Deserialize;
use serde_json::json;
use tiny_http::{Header, Method, Request, Response, Server};

use super::live::{PartnerArgs, Place, append_episode};
use super::model::ComputeArgs;
use super::{Context, Done, note, print};
use crate::error::usage;
use crate::files;
use crate::report::{LIVE_RUNS, REPORT_FILE, belief_page, live, live_page};
use crate::session::{Look, Predictor, Probes};
use crate::teacher::{Evidence, Session, Sessions};

#[derive(Args)]
pub(super) struct ViewArgs {
    /// Run directories
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// Where to listen, on 127.0.0.1 only; 0 takes any free port
    #[arg(long, default_value_t = 6007)]
    port: u16,
    /// Where answers given on the belief pages are saved, if the visitor asks for it
    /// [default: people.jsonl]
    #[arg(long, value_name = "FILE.jsonl")]
    save: Option<PathBuf>,
    /// Questions a trait by which the model's beliefs are found out after every answer; 0 spares their time
    #[arg(long, default_value_t = 4)]
    probes: usize,
    #[command(flatten)]
    compute: ComputeArgs,
}

/// Serves until the process is stopped; only programs on this machine are answered.
pub(super) fn command(args: ViewArgs, context: &Context) -> Result<Done> {
    let ViewArgs { runs, port, save, probes, compute } = args;
    if runs.len() > LIVE_RUNS {
        return Err(usage(format!("{} runs: at most {LIVE_RUNS} can be told apart in one plot", runs.len())));
    }
    if let Some(missing) = runs.iter().find(|run| !run.is_dir()) {
        return Err(usage(format!("{}: there is no such folder", missing.display())));
    }
    if let Some(save) = &save {
        files::check_writable(save)?;
    }
    let save = save.unwrap_or_else(|| PathBuf::from("people.jsonl"));
    let server = Server::http(("127.0.0.1", port)).map_err(|error| {
        anyhow!("cannot listen on port {port} ({error}): choose another --port, or 0 for any")
    })?;
    let port = server.server_addr().to_ip().map_or(port, |address| address.port());
    print(&format!("http://127.0.0.1:{port}/ (Ctrl-C ends it)"));
    let partner = PartnerArgs { source: None, adapter: None, compute };
    let mut pages = Pages { runs, port, save, probes, partner, context, loaded: None };
    for mut request in server.incoming_requests() {
        let answer = pages.answer(&mut request);
        // A reader who has gone away is no error.
        if let Err(error) = request.respond(answer) {
            note(&format!("a request was not answered: {error}"));
        }
    }
    Ok(Done::Finished)
}

type Page = Response<std::io::Cursor<Vec<u8>>>;

/// What a page may do: its own script and styles, and ask this server. Nobody may put it into a frame.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
    img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// A run's report has no script.
const REPORT_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'";

/// Nobody answers so many questions that this is too short.
const LONGEST_BODY: u64 = 64 << 10;

struct Pages<'a> {
    runs: Vec<PathBuf>,
    port: u16,
    save: PathBuf,
    probes: usize,
    partner: PartnerArgs,
    context: &'a Context,
    /// The model of the run that was asked for last.
    loaded: Option<(usize, Predictor)>,
}

/// What a visitor has answered so far, from which everything follows anew.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    seed: u64,
    evidence: Evidence,
    answers: Vec<usize>,
    /// Whether the model is asked too.
    #[serde(default)]
    model: bool,
    /// Who is saved.
    #[serde(default)]
    user: String,
}

impl Pages<'_> {
    fn answer(&mut self, request: &mut Request) -> Page {
        if let Err(why) = is_ours(request, self.port) {
            return text(403, why);
        }
        let url = request.url().split('?').next().unwrap_or_default().to_owned();
        let parts: Vec<&str> = url.trim_matches('/').split('/').collect();
        let run = |number: &str| number.parse::<usize>().ok().filter(|&n| n < self.runs.len());
        match (request.method(), parts.as_slice()) {
            (Method::Get | Method::Head, [""]) => html(200, &live_page(), POLICY),
            (Method::Get | Method::Head, ["runs"]) => html(200, &live(&self.runs), POLICY),
            (Method::Get | Method::Head, ["report", number]) => match run(number) {
                Some(n) => report(&self.runs[n]),
                None => text(404, "there is no such run"),
            },
            (Method::Get | Method::Head, ["belief", number]) => match run(number) {
                Some(n) => self.belief(n),
                None => text(404, "there is no such run"),
            },
            (Method::Post, ["belief", number, what @ ("look" | "save")]) => match run(number) {
                Some(n) => self.posted(n, what, request),
                None => failure(404, "there is no such run"),
            },
            (Method::Get | Method::Head | Method::Post, _) => text(404, "there is no such page"),
            _ => text(405, "only GET, and POST from the pages themselves"),
        }
    }

    /// The page of a live dialogue.
    fn belief(&self, n: usize) -> Page {
        let place = match Place::read(&self.runs[n], &[]) {
            Ok(place) => place,
            Err(error) => return text(404, &format!("{error:#}")),
        };
        let own = place.config.teacher.as_ref().map(|teacher| teacher.evidence);
        match sessions(&place, Evidence::Eig) {
            Ok(sessions) => {
                let (name, world) = (&place.config.run.name, sessions.world().name());
                let most_telling = own.is_some_and(|own| own != Evidence::Random);
                let page = belief_page(n, name, world, place.has_model(), most_telling, &self.save);
                html(200, &page, POLICY)
            }
            Err(error) => text(404, &format!("no dialogue with this run: {error:#}")),
        }
    }

    fn posted(&mut self, n: usize, what: &str, request: &mut Request) -> Page {
        let mut body = Vec::new();
        if let Err(error) = request.as_reader().take(LONGEST_BODY + 1).read_to_end(&mut body) {
            return failure(400, &format!("the request broke off: {error}"));
        }
        if body.len() as u64 > LONGEST_BODY {
            return failure(413, "the request is too long");
        }
        let answers: Answers = match serde_json::from_slice(&body) {
            Ok(answers) => answers,
            Err(error) => return failure(400, &format!("not what the page sends: {error}")),
        };
        let result = if what == "save" { self.save(n, &answers) } else { self.look(n, &answers) };
        match result {
            Ok(value) => respond(200, value.to_string(), "application/json", POLICY),
            Err(error) => {
                let status =
                    if error.chain().any(|c| c.is::<crate::error::UsageError>()) { 422 } else { 500 };
                failure(status, &format!("{error:#}"))
            }
        }
    }

    fn look(&mut self, n: usize, answers: &Answers) -> Result<serde_json::Value> {
        let place = Place::read(&self.runs[n], &[])?;
        let sessions = sessions(&place, answers.evidence)?;
        let session = replay(&sessions, answers)?;
        let mut looked = None;
        if answers.model && place.has_model() {
            if self.loaded.as_ref().is_none_or(|(loaded, _)| *loaded != n) {
                self.loaded = None;
                self.loaded = Some((n, place.predictor(&self.partner, self.context)?));
            }
            if let Some((_, predictor)) = &mut self.loaded {
                let probes = Probes::new(&sessions, self.probes);
                looked = Some(Look::at(&sessions, &session, Some((predictor, &probes)))?);
            }
        }
        let look = match looked {
            Some(look) => look,
            None => Look::at(&sessions, &session, None)?,
        };
        Ok(serde_json::to_value(look)?)
    }

    fn save(&self, n: usize, answers: &Answers) -> Result<serde_json::Value> {
        let place = Place::read(&self.runs[n], &[])?;
        let sessions = sessions(&place, answers.evidence)?;
        let session = replay(&sessions, answers)?;
        let episodes = append_episode(&self.save, |number| {
            let user = answers.user.trim();
            let user = if user.is_empty() { format!("person-{number}") } else { user.to_owned() };
            session.interview().episode(&format!("{}-live-{number}", sessions.world().name()), &user)
        })?;
        Ok(json!({"file": self.save.display().to_string(), "episodes": episodes}))
    }
}

fn sessions(place: &Place, evidence: Evidence) -> Result<Sessions> {
    Sessions::new(place.config.teacher()?, evidence)
}

/// The session after these answers. It is cheap, so nothing is kept between requests.
fn replay<'a>(sessions: &'a Sessions, answers: &Answers) -> Result<Session<'a>> {
    let mut session = sessions.begin(answers.seed);
    for &option in &answers.answers {
        session.answer(option)?;
    }
    Ok(session)
}

/// The run's own page, which may run no script.
fn report(run: &Path) -> Page {
    match std::fs::read_to_string(run.join(REPORT_FILE)) {
        Ok(page) => html(200, &page, REPORT_POLICY),
        Err(_) => text(404, "there is no report yet: `bayesteach report` makes one"),
    }
}

fn html(status: u16, page: &str, policy: &str) -> Page {
    respond(status, page.to_owned(), "text/html; charset=utf-8", policy)
}

fn text(status: u16, message: &str) -> Page {
    respond(status, message.to_owned(), "text/plain; charset=utf-8", POLICY)
}

fn failure(status: u16, message: &str) -> Page {
    respond(status, json!({"error": message}).to_string(), "application/json", POLICY)
}

fn respond(status: u16, body: String, kind: &str, policy: &str) -> Page {
    let headers = [
        ("Content-Type", kind),
        ("Content-Security-Policy", policy),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ];
    let mut response = Response::from_data(body.into_bytes()).with_status_code(status);
    for (name, value) in headers {
        if let Ok(header) = Header::from_bytes(name, value) {
            response.add_header(header);
        }
    }
    response
}

/// Whether a request is of a page that this server gave, or of someone who typed its address: another site's name that
/// points to this machine is not answered, and neither is what another site's page sends here.
fn is_ours(request: &Request, port: u16) -> Result<(), &'static str> {
    let header =
        |name: &'static str| request.headers().iter().find(|h| h.field.equiv(name)).map(|h| h.value.as_str());
    let own = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
    let Some(host) = header("Host").filter(|host| own.iter().any(|own| own == host)) else {
        return Err("this page is for 127.0.0.1 only");
    };
    if *request.method() != Method::Post {
        return Ok(());
    }
    let is_foreign = header("Origin").is_some_and(|origin| origin.strip_prefix("http://") != Some(host))
        || header("Sec-Fetch-Site").is_some_and(|site| site != "same-origin");
    let is_json =
        header("Content-Type").is_some_and(|kind| kind.split(';').next() == Some("application/json"));
    // Pages of other sites cannot send this type without asking first.
    if is_foreign || !is_json { Err("only this server's own pages may send something") } else { Ok(()) }
}
