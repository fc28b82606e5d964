//! `bayesteach schedule`: the evidence that leads a predictor to a belief fastest.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use super::live::{PartnerArgs, Place};
use super::{Context, Done, Settings, note, print};
use crate::episode;
use crate::error::usage;
use crate::files;
use crate::rng;
use crate::session::{Predictor, Probes};
use crate::teacher::{Evidence, Example, Interview, Search, Sessions, Target, schedule};
use crate::world::Question;

/// Questions to draw, and examples to show, where nothing is said.
const DRAW: usize = 12;
const COUNT: usize = 5;

#[derive(Args)]
pub(super) struct ScheduleArgs {
    /// A run directory, or a config file whose [teacher] names the world
    #[arg(value_name = "RUN_OR_CONFIG")]
    place: PathBuf,
    /// The target: the user of this index in the world's grid
    #[arg(long, value_name = "INDEX", conflicts_with = "levels", required_unless_present = "levels")]
    user: Option<usize>,
    /// The target: an attribute at a level, such as extraversion=5 or illness=flu; may be repeated
    #[arg(long = "level", value_name = "NAME=LEVEL", value_parser = parse_level)]
    levels: Vec<(String, String)>,
    /// The examples to choose from: an episode file of this world
    #[arg(long, value_name = "FILE.jsonl")]
    pool: Option<PathBuf>,
    /// Without a pool: so many questions as the world draws them, answered by one who is like the target [default: 12, or
    /// all that the world has]
    #[arg(long, value_name = "N", conflicts_with = "pool")]
    draw: Option<usize>,
    /// How many examples to show [default: 5, or all that there are]
    #[arg(long)]
    count: Option<usize>,
    /// One after the other, or all ways to choose so many (by the teacher only)
    #[arg(long, value_enum, default_value = "greedy")]
    search: SearchArg,
    /// Let a model choose too, not the exact teacher alone
    #[arg(long)]
    by_model: bool,
    #[command(flatten)]
    partner: PartnerArgs,
    /// Random orders to compare with
    #[arg(long, default_value_t = 20)]
    random: usize,
    /// Questions a trait by which predictions are compared with the target's
    #[arg(long, default_value_t = 2)]
    probes: usize,
    /// What everything drawn is a function of
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Write the orders found as dialogues, an episode each
    #[arg(long, value_name = "FILE.jsonl")]
    out: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    set: Settings,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SearchArg {
    Greedy,
    Exhaustive,
}

impl From<SearchArg> for Search {
    fn from(search: SearchArg) -> Self {
        match search {
            SearchArg::Greedy => Search::Greedy,
            SearchArg::Exhaustive => Search::Exhaustive,
        }
    }
}

fn parse_level(text: &str) -> Result<(String, String), String> {
    let parsed = text.split_once('=').map(|(name, level)| (name.trim().to_owned(), level.trim().to_owned()));
    parsed.ok_or_else(|| format!("{text:?} is not NAME=LEVEL"))
}

pub(super) fn command(args: &ScheduleArgs, context: &Context) -> Result<Done> {
    if let Some(out) = &args.out {
        let inputs = [args.pool.as_deref(), Some(args.place.as_path())];
        files::check_apart(&[out], &inputs.into_iter().flatten().collect::<Vec<_>>())?;
        files::check_writable(out)?;
    }
    let place = Place::read(&args.place, &args.set.values)?;
    let sessions = Sessions::new(place.config.teacher()?, Evidence::Random)?;
    let world = sessions.world();
    let target = match args.user {
        Some(index) => Target::user(world, index)?,
        None => Target::levels(world, &args.levels)?,
    };
    let pool = pool(args, &sessions, &target)?;
    let count = args.count.unwrap_or(COUNT.min(pool.len()));
    ensure!(
        (1..=pool.len()).contains(&count),
        usage(format!("--count is {count}, but the pool has {} examples", pool.len()))
    );
    let named = args.partner.source.is_some() || args.partner.adapter.is_some();
    let mut model = match args.by_model || named || place.has_model() {
        true => Some(place.predictor(&args.partner, context)?),
        false => None,
    };
    let probes = Probes::new(&sessions, args.probes).at(&sessions, &sessions.interview());
    let course = Course {
        probes: probes.into_iter().filter(|question| target.is_about(question.factor)).collect(),
        sessions: &sessions,
        target: &target,
        pool: &pool,
        count,
    };
    let schedules = course.all(args, model.as_mut())?;
    if let Some(out) = &args.out {
        course.write(out, &schedules)?;
    }
    if args.json {
        print(&course.json(&schedules).to_string());
    } else {
        print(&course.table(&schedules, args.random));
    }
    Ok(Done::Finished)
}

fn pool(args: &ScheduleArgs, sessions: &Sessions, target: &Target) -> Result<Vec<Example>> {
    let world = sessions.world();
    let Some(file) = &args.pool else {
        let most = world.max_rounds().unwrap_or(1000);
        let draw = args.draw.unwrap_or(DRAW.min(most));
        ensure!(
            (1..=most).contains(&draw),
            usage(format!("--draw is {draw}, the {} world has 1 to {most} questions", world.name()))
        );
        let (mut questions, mut answers) =
            (rng::stream(args.seed, "schedule.questions", 0), rng::stream(args.seed, "schedule.answers", 0));
        return Ok(Example::draw(world, target, draw, &mut questions, &mut answers));
    };
    let mut pool = Vec::new();
    for episode in episode::read(file)? {
        let examples = Example::of_episode(world, &episode);
        pool.extend(examples.map_err(|error| error.context(file.display().to_string()))?);
    }
    Ok(pool)
}

/// An order of examples with what it leads to.
struct Schedule {
    name: &'static str,
    /// Indices into the pool; of random orders the first.
    order: Vec<usize>,
    /// After 0, 1, … examples; of random orders the mean.
    after: Vec<After>,
}

/// Where a predictor stands after some examples.
#[derive(Clone, Copy, Default)]
struct After {
    /// The logarithm of the exact posterior of the target.
    log_belief: f64,
    /// KL(who knows the target ‖ teacher), mean over the probes, in nats.
    teacher: f64,
    /// The same of the model.
    model: Option<f64>,
}

struct Course<'a> {
    sessions: &'a Sessions,
    target: &'a Target,
    pool: &'a [Example],
    probes: Vec<Question>,
    /// How many examples are shown.
    count: usize,
}

impl Course<'_> {
    fn all(&self, args: &ScheduleArgs, mut model: Option<&mut Predictor>) -> Result<Vec<Schedule>> {
        let count = self.count;
        let mut schedules = Vec::new();
        let before = self.sessions.interview();
        let order = schedule(self.pool.len(), count, args.search.into(), &mut |order| {
            let shown = order.iter().map(|&i| (&self.pool[i].question, self.pool[i].answer));
            Ok(self.target.log_belief(&before.believing(shown)))
        })?;
        schedules.push(self.follow("chosen by the teacher", order, &mut model)?);
        if let Some(predictor) = model.as_mut().filter(|_| args.by_model) {
            ensure!(!self.probes.is_empty(), usage("--probes is 0, but a model is asked by probes"));
            note("the model chooses …");
            let order = schedule(self.pool.len(), count, Search::Greedy, &mut |order| {
                Ok(-self.model_distance(&self.after(order), predictor)?)
            })?;
            schedules.push(self.follow("chosen by the model", order, &mut model)?);
        }
        let mut random: Option<Schedule> = None;
        for i in 0..args.random {
            let mut order: Vec<usize> = (0..self.pool.len()).collect();
            rng::stream(args.seed, "schedule.random", i as u64).shuffle(&mut order);
            order.truncate(count);
            let one = self.follow("random order", order, &mut model)?;
            let weight = 1.0 / args.random as f64;
            let mean = random.get_or_insert_with(|| Schedule {
                after: vec![After { model: one.after[0].model.map(|_| 0.0), ..After::default() }; count + 1],
                ..Schedule { name: one.name, order: one.order.clone(), after: Vec::new() }
            });
            for (mean, after) in mean.after.iter_mut().zip(&one.after) {
                mean.log_belief += weight * after.log_belief;
                mean.teacher += weight * after.teacher;
                mean.model = mean.model.zip(after.model).map(|(mean, own)| mean + weight * own);
            }
        }
        schedules.extend(random);
        schedules.push(self.follow("given order", (0..count).collect(), &mut model)?);
        Ok(schedules)
    }

    /// The dialogue that shows these examples.
    fn after(&self, order: &[usize]) -> Interview<'_> {
        let mut interview = self.sessions.interview();
        for (place, &i) in (1..).zip(order) {
            interview.answer(&self.pool[i].question.at(place), self.pool[i].answer);
        }
        interview
    }

    fn follow(
        &self,
        name: &'static str,
        order: Vec<usize>,
        model: &mut Option<&mut Predictor>,
    ) -> Result<Schedule> {
        let mut after = Vec::with_capacity(order.len() + 1);
        for shown in 0..=order.len() {
            let interview = self.after(&order[..shown]);
            let predictives: Vec<Vec<f64>> =
                self.probes.iter().map(|probe| interview.posterior().predictive(probe)).collect();
            after.push(After {
                log_belief: self.target.log_belief(interview.posterior()),
                teacher: self.distance(&predictives),
                model: match model {
                    Some(predictor) if !self.probes.is_empty() => {
                        Some(self.model_distance(&interview, predictor)?)
                    }
                    _ => None,
                },
            });
        }
        Ok(Schedule { name, order, after })
    }

    fn model_distance(&self, interview: &Interview, predictor: &mut Predictor) -> Result<f64> {
        let place = interview.asked().len() + 1;
        let dialogues: Vec<_> = self.probes.iter().map(|probe| interview.asking(&probe.at(place))).collect();
        let predicted: Vec<Vec<f64>> = predictor.predict(&dialogues)?.into_iter().map(|p| p.probs).collect();
        Ok(self.distance(&predicted))
    }

    /// The mean over the probes of KL(who knows the target ‖ predictor).
    fn distance(&self, predictives: &[Vec<f64>]) -> f64 {
        let kl = |(probe, own): (&Question, &Vec<f64>)| {
            let target = self.target.predictive(self.sessions.world(), probe);
            let terms = target.iter().zip(own).filter(|(t, _)| **t > 0.0);
            terms.map(|(t, p)| t * (t / p.max(1e-12)).ln()).sum::<f64>()
        };
        self.probes.iter().zip(predictives).map(kl).sum::<f64>() / self.probes.len().max(1) as f64
    }

    fn table(&self, schedules: &[Schedule], random: usize) -> String {
        let count = schedules.first().map_or(0, |s| s.order.len());
        let width = schedules.iter().map(|s| s.name.len()).max().unwrap_or(0);
        let head: String = (0..=count).map(|n| format!("{n:>8}")).collect();
        let mut text = format!("after so many of {} examples:", self.pool.len());
        let mut block = |title: &str, of: &dyn Fn(&After) -> Option<f64>| {
            if schedules.iter().any(|s| s.after.iter().any(|after| of(after).is_some())) {
                text += &format!("\n\n{title}\n{:width$}{head}", "");
                for schedule in schedules {
                    let cell = |after: &After| of(after).map_or("–".to_owned(), |v| format!("{v:.3}"));
                    let row: String =
                        schedule.after.iter().map(|after| format!("{:>8}", cell(after))).collect();
                    text += &format!("\n{:width$}{row}", schedule.name);
                }
            }
        };
        block("exact posterior of the target (geometric mean of random orders)", &|a| {
            Some(a.log_belief.exp())
        });
        if !self.probes.is_empty() {
            block("distance of the teacher's predictions from the target's (nats)", &|a| Some(a.teacher));
        }
        block("distance of the model's predictions from the target's (nats)", &|a| a.model);
        for schedule in schedules.iter().filter(|s| s.name.starts_with("chosen")) {
            text += &format!("\n\n{}:", schedule.name);
            for (place, &i) in schedule.order.iter().enumerate() {
                let Example { question, answer } = &self.pool[i];
                let asked = question.at(place + 1).text.replace('\n', " / ");
                text +=
                    &format!("\n  {}. (example {}) {asked} → {}", place + 1, i + 1, question.labels[*answer]);
            }
        }
        if random > 0 {
            text += &format!("\n\nrandom: {random} orders of the pool");
        }
        text
    }

    fn json(&self, schedules: &[Schedule]) -> serde_json::Value {
        let of = |schedule: &Schedule| {
            let after: Vec<_> = (schedule.after.iter().enumerate())
                .map(|(shown, a)| {
                    json!({"examples": shown, "log_posterior": a.log_belief, "teacher_distance": a.teacher,
                           "model_distance": a.model})
                })
                .collect();
            json!({"name": schedule.name, "order": schedule.order, "after": after})
        };
        json!({"format_version": 1, "world": self.sessions.world().name(), "pool": self.pool.len(),
               "schedules": schedules.iter().map(of).collect::<Vec<_>>()})
    }

    fn write(&self, out: &Path, schedules: &[Schedule]) -> Result<()> {
        let mut bytes = Vec::new();
        for schedule in schedules.iter().filter(|s| s.name != "random order") {
            let id = schedule.name.replace(' ', "-");
            if let Some(episode) = self.after(&schedule.order).episode(&id, "target") {
                episode::write_line(&mut bytes, &episode)?;
            }
        }
        files::write(out, &bytes)
    }
}
