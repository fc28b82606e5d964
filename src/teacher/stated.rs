//! From beliefs that were stated, one attribute at a time, to the posterior that they amount to.

use std::collections::HashMap;

use super::posterior::Posterior;
use crate::world::{Attribute, Factor, World};

impl Posterior {
    /// What one believes who holds the stated beliefs, one distribution over the levels of each of the world's attributes,
    /// in their order, and nothing else.
    ///
    /// Attributes count as independent: a combination of levels has the product of their probabilities, combinations that
    /// nobody has are left out, and what is left is made to sum to 1. (So it has been published for flights, where the
    /// user who minds nothing is left out.) Hypotheses with the same levels divide their combination's probability as
    /// the prior does; what no attribute is about keeps its prior, and so does a factor of which all was ruled out.
    pub fn of_stated(world: &World, stated: &[Vec<f64>]) -> Posterior {
        let attributes = world.attributes();
        let of_factor = |(f, factor): (usize, &Factor)| {
            let about: Vec<(&Attribute, &Vec<f64>)> =
                attributes.iter().zip(stated).filter(|(attribute, _)| attribute.factor == f).collect();
            let levels =
                |h: usize| -> Vec<u8> { about.iter().map(|(attribute, _)| attribute.level_of[h]).collect() };
            let mut shared: HashMap<Vec<u8>, f64> = HashMap::new();
            for (h, p) in factor.prior.iter().enumerate() {
                *shared.entry(levels(h)).or_default() += p;
            }
            let weight = |(h, prior): (usize, &f64)| {
                let product: f64 = about.iter().map(|(a, probs)| probs[usize::from(a.level_of[h])]).product();
                if *prior > 0.0 { product * prior / shared[&levels(h)] } else { 0.0 }
            };
            let weights: Vec<f64> = factor.prior.iter().enumerate().map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let prior = match sum > 0.0 && !about.is_empty() {
                true => weights.iter().map(|w| w / sum).collect(),
                false => factor.prior.clone(),
            };
            Factor { name: factor.name.clone(), prior }
        };
        let factors: Vec<Factor> = world.factors().iter().enumerate().map(of_factor).collect();
        Posterior::prior(&factors)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    /// Two features, weights -1 to 1 in halves: certain of -½ and of 0 leaves one user; certain of 0 and 0 leaves
    /// nobody, as that user does not exist; half a belief in each of two levels, and nobody left out, divides evenly.
    #[test]
    fn stated_beliefs_multiply() {
        let config = toml::from_str("features = [\"duration\", \"price\"]").unwrap();
        let world = World::flights(&config).unwrap();
        let levels: Vec<Vec<u8>> = world.attributes().iter().map(|a| a.level_of.clone()).collect();
        let certain =
            |level: usize| -> Vec<f64> { (0..5).map(|l| f64::from(u8::from(l == level))).collect() };
        let posterior = Posterior::of_stated(&world, &[certain(1), certain(2)]);
        let user = (0..24).find(|&h| levels[0][h] == 1 && levels[1][h] == 2).unwrap();
        assert_eq!(posterior.marginal(0)[user], 1.0);
        let nobody = Posterior::of_stated(&world, &[certain(2), certain(2)]);
        assert!(nobody.marginal(0).iter().all(|p| (p - 1.0 / 24.0).abs() < 1e-12));
        let half = vec![0.5, 0.5, 0.0, 0.0, 0.0];
        let posterior = Posterior::of_stated(&world, &[half.clone(), half]);
        for (h, p) in posterior.marginal(0).iter().enumerate() {
            let expected = if levels[0][h] < 2 && levels[1][h] < 2 { 0.25 } else { 0.0 };
            assert!((p - expected).abs() < 1e-12);
        }
    }

    /// Where each trait is a factor of its own, the teacher's marginals stated back are the teacher's posterior.
    #[test]
    fn marginals_of_factors_are_the_posterior() {
        let world = World::personality(&Default::default()).unwrap();
        let questions = world.questions(20, &mut rng::stream(3, "test", 0));
        let mut posterior = Posterior::prior(world.factors());
        questions.iter().enumerate().for_each(|(i, q)| {
            posterior.observe(q, i % 5);
        });
        let stated: Vec<Vec<f64>> =
            world.attributes().iter().map(|a| posterior.predictive(&a.question())).collect();
        let again = Posterior::of_stated(&world, &stated);
        for f in 0..world.factors().len() {
            for (p, q) in posterior.marginal(f).iter().zip(again.marginal(f)) {
                assert!((p - q).abs() < 1e-9);
            }
        }
    }
}
