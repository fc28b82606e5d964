//! Mixtures of known coins or chains: a finite grid of hypotheses, asked about one symbol after the other.

use std::sync::Arc;

use super::posterior::Posterior;
use super::rival::Weighing;
use crate::world::chain::Rows;
use crate::world::{Factor, Likelihood, Question, Reward};

/// The posterior over finitely many known sources: w_i proportional to π_i Π b_ik^n_k, in log space.
///
/// ```
/// use bayesteach::teacher::Mixture;
/// use bayesteach::world::chain::Rows;
///
/// let coins = [Rows::new(&[vec![0.2, 0.8]]), Rows::new(&[vec![0.8, 0.2]])];
/// let mut belief = Mixture::new(&coins, &[0.5, 0.5]);
/// belief.observe(0);
/// // .2² + .8², over .2 + .8
/// assert!((belief.predictive()[0] - 0.68).abs() < 1e-12);
/// ```
#[derive(Clone, Debug)]
pub struct Mixture {
    posterior: Posterior,
    /// The components.
    factor: [Factor; 1],
    /// One for each context, and one for the beginning of a chain.
    questions: Arc<[Question]>,
    contexts: usize,
    previous: Option<usize>,
}

impl Mixture {
    /// Nothing observed yet. The components have the same contexts and symbols; the weights sum to 1.
    pub fn new(components: &[Rows], weights: &[f64]) -> Mixture {
        let contexts = components[0].contexts();
        let labels: Arc<[String]> = (0..components[0].symbols()).map(|k| k.to_string()).collect();
        let question = |row: &dyn Fn(&Rows) -> Vec<f64>| {
            let log_probs = components.iter().flat_map(row).map(f64::ln).collect();
            let likelihood = Arc::new(Likelihood::from_log_probs(labels.len(), log_probs));
            Question {
                text: String::new(),
                placed: None,
                labels: Arc::clone(&labels),
                factor: 0,
                behaviour: Arc::clone(&likelihood),
                likelihood,
                reward: Reward::Nearness,
                levels: Arc::default(),
            }
        };
        let of_contexts = (0..contexts).map(|c| question(&|rows: &Rows| rows.row(c).to_vec()));
        let at_beginning = question(&|rows: &Rows| rows.after(None));
        let factor = [Factor { name: "source".into(), prior: weights.to_vec() }];
        Mixture {
            posterior: Posterior::prior(&factor),
            factor,
            questions: of_contexts.chain([at_beginning]).collect(),
            contexts,
            previous: None,
        }
    }

    fn question(&self) -> &Question {
        let context = if self.contexts == 1 { 0 } else { self.previous.unwrap_or(self.contexts) };
        &self.questions[context]
    }

    /// Takes in the next symbol; one that no component still alive could have given is ignored.
    pub fn observe(&mut self, symbol: usize) {
        self.observe_weighing(symbol, Weighing::EXACT);
    }

    /// The same with its likelihood to the `power`, after all evidence before it was taken to the `discount`.
    pub fn observe_weighing(&mut self, symbol: usize, Weighing { power, discount }: Weighing) {
        let question = self.question().clone();
        self.posterior.forget(discount, &self.factor);
        self.posterior.observe_to_the_power(&question, symbol, power);
        self.previous = Some(symbol);
    }

    /// The distribution of the next symbol.
    pub fn predictive(&self) -> Vec<f64> {
        self.posterior.predictive(self.question())
    }

    /// The posterior probability of each component.
    pub fn hypotheses(&self) -> &[f64] {
        self.posterior.marginal(0)
    }

    /// How many symbols were impossible and so ignored.
    pub fn ignored(&self) -> usize {
        self.posterior.ignored()
    }
}
