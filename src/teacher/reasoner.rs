//! How far from exact inference a model's answers are, and in which direction: the reasoner that explains them best.
//!
//! The family is that of the rival teachers. A reasoner of discount γ, evidence weight κ and temperature τ believes
//! log q(h) = log prior(h) + κ Σ γ^k log P(answer k rounds ago | h) + const, and predicts (Σ q(h) P(· | h))^(1/τ), made to
//! sum to 1. Where answers can only rule hypotheses out, powers of a likelihood say nothing else; there κ is 1 and the
//! reasoner takes users to answer at random with a probability, the lapse. Where users change and the teacher knows it,
//! so does the reasoner: between two questions its belief takes the same step.
//!
//! The fit is the least mean KL(model ‖ reasoner) over answers: the maximum of the likelihood of answers drawn from the
//! model. It goes by Fisher scoring on the logarithms of the parameters (the logit of a lapse); the intervals are those
//! of the sandwich estimator with the scores of a user's answers added up (White 1982; Liang and Zeger 1986).

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::drift::Transition;
use super::replay::Replay;
use crate::metrics::{ClusteredMean, Estimate, Fitted, FittedReasoner, Prediction, log_sum_exp};
use crate::world::{Factor, Likelihood, World};

/// An episode with what a model predicted.
#[derive(Clone, Copy, Debug)]
pub struct Explained<'a> {
    /// Any number that is the same for the episodes of one user.
    pub user: usize,
    /// The episode.
    pub replay: &'a Replay,
    /// The model's predictions of everything that was asked in it, in order.
    pub predictions: &'a [Prediction],
}

/// The least and the largest logarithm of a discount, an evidence weight and a temperature, and logit of a lapse.
const DISCOUNT: (f64, f64) = (-4.6, 0.4);
const WEIGHT: (f64, f64) = (-4.6, 3.0);
const LAPSE: (f64, f64) = (-9.2, 3.0);
const TEMPERATURE: (f64, f64) = (-2.3, 2.3);

/// Where the search begins: the best of these pairs of the first two.
const DISCOUNTS: [f64; 4] = [-1.6, -0.5, -0.1, 0.0];
const WEIGHTS: [f64; 4] = [-1.5, -0.5, 0.0, 0.7];
const LAPSES: [f64; 4] = [-5.0, -2.5, -1.0, 0.5];

/// A likelihood counts as no lower than this, so that one answer never rules out what others speak for.
const LOWEST: f64 = -50.0;

/// Half the width of a difference quotient.
const STEP: f64 = 1e-3;

/// The width of a 95 % interval on each side, in standard errors.
const HALF_WIDTH: f64 = 1.96;

const MOST_STEPS: usize = 60;

type Parameters = [f64; 3];

/// Fits the reasoner to a model's answers. `change` is how users change between two questions, where they do and that is
/// known: the reasoner allows for it as the teacher does, so that exact inference is in the family.
///
/// # Errors
/// If there are no answers, or not as many predictions as questions.
pub fn fit_reasoner(
    world: &World,
    change: Option<&Transition>,
    episodes: &[Explained],
) -> Result<FittedReasoner> {
    for one in episodes {
        let (asked, predicted) = (one.replay.asked.len(), one.predictions.len());
        ensure!(asked == predicted, "{predicted} predictions of {asked} answers of an episode");
    }
    let fit = Fit { world, change, episodes, lapses: world.answers_only_rule_out() };
    let answers = fit.losses(&fit.exact()).iter().map(|(_, losses)| losses.len()).sum();
    ensure!(answers > 0, "there are no answers to fit a reasoner to");

    let best = fit.search();
    let errors = fit.standard_errors(&best);
    let fitted = |i: usize, back: fn(f64) -> f64| {
        let (low, high) = fit.limits()[i];
        let at_limit = best[i] <= low || best[i] >= high;
        let end = |sign: f64| errors[i].map(|error| back(best[i] + sign * HALF_WIDTH * error));
        Fitted { value: back(best[i]), low: end(-1.0), high: end(1.0), at_limit }
    };
    let weight = (!fit.lapses).then(|| fitted(1, f64::exp));
    let users: BTreeMap<usize, ()> = episodes.iter().map(|one| (one.user, ())).collect();
    let unexplained = |parameters: &Parameters| {
        let mut mean = ClusteredMean::default();
        for (user, losses) in fit.losses(parameters) {
            losses.iter().for_each(|&loss| mean.add(user, loss));
        }
        Estimate::of_mean(&mean).unwrap_or(Estimate { value: 0.0, standard_error: None })
    };
    Ok(FittedReasoner {
        answers,
        users: users.len(),
        discount: fitted(0, f64::exp),
        evidence_weight: weight,
        prior_weight: weight.map(Fitted::inverse),
        lapse: fit.lapses.then(|| fitted(1, logistic)),
        temperature: fitted(2, f64::exp),
        kl: unexplained(&best),
        kl_exact: unexplained(&fit.exact()),
    })
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

struct Fit<'a> {
    world: &'a World,
    change: Option<&'a Transition>,
    episodes: &'a [Explained<'a>],
    /// Whether the second parameter is a lapse, and not an evidence weight.
    lapses: bool,
}

/// Scores and expected information, by user and in all.
struct Scores {
    by_user: BTreeMap<usize, Parameters>,
    information: [Parameters; 3],
}

impl Fit<'_> {
    fn limits(&self) -> [(f64, f64); 3] {
        [DISCOUNT, if self.lapses { LAPSE } else { WEIGHT }, TEMPERATURE]
    }

    /// Exact inference, or as near to it as is tried.
    fn exact(&self) -> Parameters {
        [0.0, if self.lapses { LAPSE.0 } else { 0.0 }, 0.0]
    }

    /// The logarithms of the reasoner's predictions of the answers of one episode.
    fn log_predictions(
        &self,
        one: &Explained,
        [discount, second, temperature]: &Parameters,
    ) -> Vec<Vec<f64>> {
        let (discount, temperature) = (discount.exp(), temperature.exp());
        let (weight, lapse) = if self.lapses { (1.0, logistic(*second)) } else { (second.exp(), 0.0) };
        let factors = self.world.factors();
        let mut evidence: Vec<Vec<f64>> = factors.iter().map(|f| vec![0.0; f.prior.len()]).collect();
        let mut all = Vec::new();
        for asked in one.replay.asked.iter().filter(|asked| asked.belief.is_none()) {
            let (likelihood, f) = (asked.question.likelihood.as_ref(), asked.question.factor);
            let predicted = predictive(&factors[f], &evidence[f], likelihood, lapse);
            let scaled: Vec<f64> = predicted.iter().map(|p| p.ln().max(LOWEST) / temperature).collect();
            let log_sum = log_sum_exp(&scaled);
            all.push(scaled.into_iter().map(|p| p - log_sum).collect());
            evidence.iter_mut().flatten().for_each(|e| *e *= discount);
            let even = lapse / likelihood.options() as f64;
            for (h, evidence) in evidence[f].iter_mut().enumerate() {
                let log_prob = match likelihood.log_prob(h, asked.truth) {
                    log_prob if lapse == 0.0 => log_prob,
                    log_prob => ((1.0 - lapse) * log_prob.exp() + even).ln(),
                };
                *evidence += weight * log_prob.max(LOWEST);
            }
            if let Some(change) = self.change {
                let moved = factors.iter().zip(&mut evidence).enumerate();
                moved.for_each(|(f, (factor, evidence))| move_on(change, f, factor, evidence));
            }
        }
        all
    }

    /// KL(model ‖ reasoner) of every answer, by episode.
    fn losses(&self, parameters: &Parameters) -> Vec<(usize, Vec<f64>)> {
        let of = |one: &Explained| {
            let own = self.log_predictions(one, parameters);
            let losses = own.iter().zip(answers(one)).map(|(own, model)| {
                let terms = model.iter().zip(own).filter(|(p, _)| **p > 0.0);
                terms.map(|(p, log_r)| p * (p.ln() - log_r)).sum()
            });
            let losses: Vec<f64> = losses.collect();
            (one.user, losses)
        };
        self.episodes.par_iter().map(of).collect()
    }

    fn loss(&self, parameters: &Parameters) -> f64 {
        self.losses(parameters).iter().map(|(_, losses)| losses.iter().sum::<f64>()).sum()
    }

    /// Derivatives of the loss: exactly so by user, and the expected second ones.
    fn scores(&self, at: &Parameters) -> Scores {
        let of = |one: &Explained| {
            let here = self.log_predictions(one, at);
            let slopes: Vec<Vec<Vec<f64>>> = (0..3)
                .map(|i| {
                    let [low, high] =
                        [-STEP, STEP].map(|step| self.log_predictions(one, &moved(at, i, step)));
                    let slope = |(low, high): (&Vec<f64>, &Vec<f64>)| {
                        low.iter().zip(high).map(|(a, b)| (b - a) / (2.0 * STEP)).collect()
                    };
                    low.iter().zip(&high).map(slope).collect()
                })
                .collect();
            let (mut score, mut information) = ([0.0; 3], [[0.0; 3]; 3]);
            for (t, model) in answers(one).enumerate() {
                for (o, p) in model.iter().enumerate() {
                    let of_reasoner = here[t][o].exp();
                    for i in 0..3 {
                        score[i] -= p * slopes[i][t][o];
                        for j in 0..3 {
                            information[i][j] += of_reasoner * slopes[i][t][o] * slopes[j][t][o];
                        }
                    }
                }
            }
            (one.user, score, information)
        };
        let all: Vec<(usize, Parameters, [Parameters; 3])> = self.episodes.par_iter().map(of).collect();
        let mut scores = Scores { by_user: BTreeMap::new(), information: [[0.0; 3]; 3] };
        for (user, score, information) in all {
            let sum = scores.by_user.entry(user).or_default();
            for i in 0..3 {
                sum[i] += score[i];
                (0..3).for_each(|j| scores.information[i][j] += information[i][j]);
            }
        }
        scores
    }

    /// The parameters of the least loss.
    fn search(&self) -> Parameters {
        let seconds = if self.lapses { LAPSES } else { WEIGHTS };
        let pairs = DISCOUNTS.iter().flat_map(|&d| seconds.iter().map(move |&second| [d, second, 0.0]));
        let mut best = (f64::INFINITY, self.exact());
        for start in pairs {
            let loss = self.loss(&start);
            if loss < best.0 {
                best = (loss, start);
            }
        }
        let (mut loss, mut at) = best;
        let mut damping = 1e-3;
        for _ in 0..MOST_STEPS {
            let Scores { by_user, information } = self.scores(&at);
            let score = total(&by_user);
            let before = loss;
            while damping < 1e12 {
                let mut damped = information;
                (0..3).for_each(|i| damped[i][i] += damping * damped[i][i].max(1e-9));
                let step = solve(damped, score.map(|s| -s)).unwrap_or_default();
                let mut next = at;
                for (i, (low, high)) in self.limits().into_iter().enumerate() {
                    next[i] = (at[i] + step[i].clamp(-1.0, 1.0)).clamp(low, high);
                }
                let reached = self.loss(&next);
                if reached < loss {
                    (loss, at, damping) = (reached, next, (damping / 10.0).max(1e-9));
                    break;
                }
                damping *= 10.0;
            }
            if before - loss < 1e-10 * before.max(1e-6) {
                break;
            }
        }
        at
    }

    /// Of the parameters that are not at a limit, where the answers determine them.
    fn standard_errors(&self, at: &Parameters) -> [Option<f64>; 3] {
        let scores = self.scores(at);
        let users = scores.by_user.len() as f64;
        let limits = self.limits();
        let is_free = |i: usize| at[i] > limits[i].0 && at[i] < limits[i].1;
        let mut bread = self.second_derivatives(at);
        for i in (0..3).filter(|&i| !is_free(i)) {
            bread[i] = [0.0; 3];
            bread.iter_mut().for_each(|row| row[i] = 0.0);
            bread[i][i] = 1.0;
        }
        let of_one = |i: usize| {
            if !is_free(i) || scores.by_user.len() < 2 || bread[i][i] <= 1e-9 {
                return None;
            }
            // The row of the inverse, then its product with each user's score.
            let mut unit = [0.0; 3];
            unit[i] = 1.0;
            let row = solve(bread, unit).filter(|row| row[i] > 0.0)?;
            let influence = |score: &Parameters| -> f64 {
                (0..3).filter(|&j| is_free(j)).map(|j| row[j] * score[j]).sum()
            };
            let squares: f64 = scores.by_user.values().map(|score| influence(score).powi(2)).sum();
            Some((squares * users / (users - 1.0)).sqrt()).filter(|error| error.is_finite())
        };
        [0, 1, 2].map(of_one)
    }

    #[expect(clippy::needless_range_loop, reason = "a matrix is filled by its indices")]
    fn second_derivatives(&self, at: &Parameters) -> [Parameters; 3] {
        let here = self.loss(at);
        let mut all = [[0.0; 3]; 3];
        for i in 0..3 {
            let [low, high] = [-STEP, STEP].map(|step| self.loss(&moved(at, i, step)));
            all[i][i] = (high - 2.0 * here + low) / STEP.powi(2);
            for j in 0..i {
                let corner = |a: f64, b: f64| self.loss(&moved(&moved(at, i, a), j, b));
                let mixed =
                    corner(STEP, STEP) - corner(STEP, -STEP) - corner(-STEP, STEP) + corner(-STEP, -STEP);
                all[i][j] = mixed / (4.0 * STEP.powi(2));
                all[j][i] = all[i][j];
            }
        }
        all
    }
}

/// The model's predictions of what was asked, but for beliefs.
fn answers<'a>(one: &'a Explained) -> impl Iterator<Item = Vec<f64>> + 'a {
    let pairs = one.replay.asked.iter().zip(one.predictions);
    pairs.filter(|(asked, _)| asked.belief.is_none()).map(|(_, prediction)| prediction.probs())
}

/// What one predicts who holds this evidence about a factor beside its prior.
fn predictive(factor: &Factor, evidence: &[f64], likelihood: &Likelihood, lapse: f64) -> Vec<f64> {
    let highest = (evidence.iter().zip(&factor.prior))
        .filter(|(_, prior)| **prior > 0.0)
        .fold(f64::NEG_INFINITY, |highest, (e, _)| highest.max(*e));
    let mut predicted = vec![0.0; likelihood.options()];
    let mut sum = 0.0;
    for (h, (e, prior)) in evidence.iter().zip(&factor.prior).enumerate() {
        let weight = prior * (e - highest).exp();
        if weight > 0.0 {
            likelihood.add_weighted(h, weight, &mut predicted);
            sum += weight;
        }
    }
    let even = lapse / likelihood.options() as f64;
    predicted.iter().map(|p| (1.0 - lapse) * p / sum + even).collect()
}

/// The evidence about a factor, as log q − log prior, once the user may have changed.
fn move_on(change: &Transition, f: usize, factor: &Factor, evidence: &mut [f64]) {
    let joint: Vec<f64> = evidence.iter().zip(&factor.prior).map(|(e, prior)| e + prior.ln()).collect();
    let log_sum = log_sum_exp(&joint);
    let log_probs: Vec<f64> = joint.iter().map(|log_p| log_p - log_sum).collect();
    let after = change.step(f, &log_probs);
    for ((e, log_p), prior) in evidence.iter_mut().zip(after).zip(&factor.prior) {
        *e = if *prior > 0.0 { log_p - prior.ln() } else { 0.0 };
    }
}

fn moved(at: &Parameters, i: usize, step: f64) -> Parameters {
    let mut moved = *at;
    moved[i] += step;
    moved
}

fn total(by_user: &BTreeMap<usize, Parameters>) -> Parameters {
    let add = |sum: Parameters, one: &Parameters| [sum[0] + one[0], sum[1] + one[1], sum[2] + one[2]];
    by_user.values().fold([0.0; 3], add)
}

/// The solution of three linear equations, by elimination; none where they do not determine it.
fn solve(mut a: [Parameters; 3], mut b: Parameters) -> Option<Parameters> {
    for column in 0..3 {
        let pivot = (column..3).max_by(|&i, &j| a[i][column].abs().total_cmp(&a[j][column].abs()))?;
        a.swap(column, pivot);
        b.swap(column, pivot);
        if a[column][column].abs() < 1e-12 {
            return None;
        }
        for row in column + 1..3 {
            let factor = a[row][column] / a[column][column];
            let pivot = a[column];
            a[row].iter_mut().zip(pivot).for_each(|(cell, above)| *cell -= factor * above);
            b[row] -= factor * b[column];
        }
    }
    let mut x = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3).map(|k| a[row][k] * x[k]).sum();
        x[row] = (b[row] - known) / a[row][row];
    }
    x.iter().all(|v| v.is_finite()).then_some(x)
}
