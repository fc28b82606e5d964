//! What a teacher believes about a drawn source: one small interface over all exact posteriors.

use super::counts::Counts;
use super::forward::{Between, Forward, Hypothesis};
use super::gaussian::Gaussian;
use super::mixture::Mixture;
use super::rival::Weighing;
use crate::metrics::entropy;
use crate::world::chain::RowsPrior;
use crate::world::hmm::{Format, Hmm};
use crate::world::process::{Outcome, Process, Query, Source};

/// The exact posterior of a source. Every round: [`read`](Belief::read) the question, take the
/// [`predictive`](Belief::predictive) distribution of its answer, [`observe`](Belief::observe) what came.
///
/// ```
/// use bayesteach::rng;
/// use bayesteach::teacher::Belief;
/// use bayesteach::world::process::Process;
///
/// # fn main() -> anyhow::Result<()> {
/// let world = Process::coins(&Default::default())?;
/// let mut source = world.source(7, 0, 0);
/// let mut belief = Belief::prior(&world);
/// let (questions, answers) = (&mut rng::stream(7, "questions", 0), &mut rng::stream(7, "answers", 0));
/// for _ in 0..10 {
///     let (query, outcome) = source.step(questions, answers);
///     belief.read(&query);
///     let surprise = -belief.predictive(&query)[outcome.option].ln();
///     assert!(surprise < 11_f64.ln() + 1e-9);
///     belief.observe(&query, &outcome);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub enum Belief {
    /// Dirichlet rows.
    Counts(Counts),
    /// Known coins or chains.
    Mixture(Mixture),
    /// Known hidden Markov models.
    Forward(Forward),
    /// Functions.
    Gaussian(Gaussian),
}

impl Belief {
    /// What the world's teacher believes before it has seen anything.
    pub fn prior(world: &Process) -> Belief {
        let of_rows = |prior: &RowsPrior| match prior {
            RowsPrior::Dirichlet(alpha) => Belief::Counts(Counts::new(alpha.clone())),
            RowsPrior::Mixture { components, weights } => Belief::Mixture(Mixture::new(components, weights)),
        };
        match world {
            Process::Coins(world) => of_rows(world.prior()),
            Process::Markov(world) => of_rows(world.prior()),
            Process::Hmm(world) => Belief::Forward(Forward::of_mixture(world)),
            Process::Regression(world) => Belief::Gaussian(Gaussian::new(world)),
        }
    }

    /// What one believes who knows the user: the yardstick of regret.
    pub fn knowing(source: &Source) -> Belief {
        match source {
            Source::Rows { rows, .. } => Belief::Mixture(Mixture::new(std::slice::from_ref(rows), &[1.0])),
            Source::Hidden { world, at } => {
                let model = world.concept(at).clone();
                let (start, between) = match world.config().format {
                    Format::Documents => (model.start().to_vec(), Between::Symbol),
                    Format::Prompts => (Hmm::example_start(world, at.slot), Between::Restart),
                };
                Belief::Forward(Forward::new(vec![Hypothesis { model, start, prior: 1.0 }], between))
            }
            Source::Function { world, function } => Belief::Gaussian(Gaussian::knowing(world, function)),
        }
    }

    /// Takes in what a question itself tells: the given symbols of an example.
    pub fn read(&mut self, query: &Query) {
        self.read_weighing(query, 1.0);
    }

    /// The same with every likelihood to the `power`.
    pub fn read_weighing(&mut self, query: &Query, power: f64) {
        if let (Belief::Forward(belief), Query::Example { given }) = (self, query) {
            let weighing = Weighing { power, ..Weighing::EXACT };
            belief.begin_example(weighing);
            given.iter().for_each(|&symbol| belief.observe_weighing(symbol, weighing));
        }
    }

    /// The distribution of the answer to a question that was read.
    pub fn predictive(&self, query: &Query) -> Vec<f64> {
        match self {
            Belief::Counts(belief) => belief.predictive(),
            Belief::Mixture(belief) => belief.predictive(),
            Belief::Forward(belief) => belief.predictive(),
            Belief::Gaussian(belief) => belief.predictive(query.input()),
        }
    }

    /// Takes in what came.
    pub fn observe(&mut self, query: &Query, outcome: &Outcome) {
        self.observe_weighing(query, outcome, Weighing::EXACT);
    }

    /// The same as a teacher does who weighs evidence otherwise.
    pub fn observe_weighing(&mut self, query: &Query, outcome: &Outcome, weighing: Weighing) {
        match self {
            Belief::Counts(belief) => belief.observe_weighing(outcome.option, weighing),
            Belief::Mixture(belief) => belief.observe_weighing(outcome.option, weighing),
            Belief::Forward(belief) => belief.observe_weighing(outcome.option, weighing),
            Belief::Gaussian(belief) => {
                if let Some(value) = outcome.value {
                    belief.observe_weighing(query.input(), value, weighing);
                }
            }
        }
    }

    /// The posterior probability of each hypothesis, where there are finitely many.
    pub fn hypotheses(&self) -> Option<Vec<f64>> {
        match self {
            Belief::Mixture(belief) => Some(belief.hypotheses().to_vec()),
            Belief::Forward(belief) => Some(belief.hypotheses()),
            Belief::Counts(_) | Belief::Gaussian(_) => None,
        }
    }

    /// The entropy of the posterior over hypotheses in nats, where there are finitely many.
    pub fn entropy(&self) -> Option<f64> {
        self.hypotheses().map(|probs| entropy(&probs))
    }

    /// How many symbols no hypothesis could explain, so that they were ignored.
    pub fn ignored(&self) -> usize {
        match self {
            Belief::Mixture(belief) => belief.ignored(),
            Belief::Forward(belief) => belief.ignored(),
            Belief::Counts(_) | Belief::Gaussian(_) => 0,
        }
    }
}
