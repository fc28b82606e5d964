//! What a predictor acts as if it believed.

use crate::world::Question;

/// More products of hypotheses, questions and options than this are not gone through.
const MOST_CELLS: usize = 4_000_000;

/// Steps of the search, at most.
const MOST_STEPS: usize = 2_000;

/// The search ends when no hypothesis could gain more than this, relatively.
const ENOUGH: f64 = 1e-6;

/// The belief about one factor under which an exact teacher would predict most like a predictor: the q that minimises
/// Σ KL(predictor ‖ Σ_h q(h) P(· | h)) over questions that bear on the factor, each with the predictor's distribution
/// over its options.
///
/// This asks nothing of the predictor but what it does anyway. The sum is convex in q, and the search (expectation
/// maximisation for mixture weights, started from `prior`, which must be above 0 somewhere) goes to its minimum; where
/// several q predict alike it ends at one near the prior. So an exact teacher's own predictions give its posterior
/// back where the questions tell all hypotheses apart, and one that predicts alike where they do not.
///
/// None where there are no questions, or too many hypotheses to go through.
pub fn implied_belief(prior: &[f64], predicted: &[(&Question, &[f64])]) -> Option<Vec<f64>> {
    let cells: usize = predicted.iter().map(|(q, _)| q.labels.len() * prior.len()).sum();
    if predicted.is_empty() || cells > MOST_CELLS {
        return None;
    }
    // P(option | hypothesis), one hypothesis after the other.
    let tables: Vec<Vec<f64>> = (predicted.iter())
        .map(|(question, _)| {
            let row = |h: usize| {
                (0..question.labels.len()).map(move |option| question.likelihood.log_prob(h, option).exp())
            };
            (0..prior.len()).flat_map(row).collect()
        })
        .collect();
    let mut belief = prior.to_vec();
    for _ in 0..MOST_STEPS {
        let mut gain = vec![0.0; belief.len()];
        for ((_, probs), table) in predicted.iter().zip(&tables) {
            let mut mixture = vec![0.0; probs.len()];
            for (row, q) in table.chunks_exact(probs.len()).zip(&belief) {
                mixture.iter_mut().zip(row).for_each(|(m, p)| *m += q * p);
            }
            // What no hypothesis still believed in can explain says nothing about which of them is true.
            let ratio: Vec<f64> =
                probs.iter().zip(&mixture).map(|(p, m)| if *m > 0.0 { p / m } else { 0.0 }).collect();
            for (row, gain) in table.chunks_exact(probs.len()).zip(&mut gain) {
                *gain += row.iter().zip(&ratio).map(|(p, r)| p * r).sum::<f64>();
            }
        }
        let sum: f64 = belief.iter().zip(&gain).map(|(q, g)| q * g).sum();
        if sum <= 0.0 {
            return None;
        }
        let most = gain.iter().zip(&belief).filter(|(_, q)| **q > 0.0).map(|(g, _)| *g).fold(0.0, f64::max);
        belief.iter_mut().zip(&gain).for_each(|(q, g)| *q *= g / sum);
        if most / sum < 1.0 + ENOUGH {
            break;
        }
    }
    Some(belief)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;
    use crate::teacher::Posterior;
    use crate::world::World;

    fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
        a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }

    /// An exact teacher is taken at its word: its predictions over a trait's items give its posterior back.
    #[test]
    fn an_exact_teacher_gives_its_posterior_back() {
        let world = World::personality(&Default::default()).unwrap();
        let mut posterior = Posterior::prior(world.factors());
        let items: Vec<_> =
            (0..50).filter_map(|item| world.item(item, 1)).filter(|q| q.factor == 0).collect();
        for (item, answer) in items.iter().zip([1, 3, 0]) {
            let probs: Vec<Vec<f64>> = items.iter().map(|q| posterior.predictive(q)).collect();
            let predicted: Vec<_> = items.iter().zip(&probs).map(|(q, p)| (q, p.as_slice())).collect();
            let implied = implied_belief(&[0.2; 5], &predicted).unwrap();
            assert!(largest_difference(&implied, posterior.marginal(0)) < 0.01, "{implied:?}");
            posterior.observe(item, answer);
        }
        assert!(implied_belief(&[0.2; 5], &[]).is_none());
    }

    /// Where many beliefs predict alike, the one found does predict so.
    #[test]
    fn the_belief_found_explains_the_predictions() {
        let world = World::flights(&Default::default()).unwrap();
        let mut draws = rng::stream(3, "test", 0);
        let mut posterior = Posterior::prior(world.factors());
        for question in world.questions(3, &mut draws) {
            posterior.observe(&question, 1);
        }
        let sets = world.option_sets(1, 20, &mut draws);
        let probs: Vec<Vec<f64>> = sets.iter().map(|q| posterior.predictive(q)).collect();
        let predicted: Vec<_> = sets.iter().zip(&probs).map(|(q, p)| (q, p.as_slice())).collect();
        let implied = implied_belief(&world.factors()[0].prior, &predicted).unwrap();
        assert!((implied.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        for (question, probs) in &predicted {
            let mut mixture = vec![0.0; 3];
            for (h, q) in implied.iter().enumerate() {
                question.likelihood.add_weighted(h, *q, &mut mixture);
            }
            assert!(largest_difference(&mixture, probs) < 0.02, "{mixture:?} {probs:?}");
        }
    }
}
