//! Gaussian posteriors of functions: Bayesian linear regression and Gaussian processes with normal noise.

use super::rival::Weighing;
use crate::world::regression::{Bins, Function, FunctionPrior, Regression, squared_exponential};

/// The posterior of a function, from its told values at some inputs.
#[derive(Clone, Debug)]
pub struct Gaussian {
    bins: Bins,
    noise_variance: f64,
    function: FunctionPosterior,
}

#[derive(Clone, Debug)]
enum FunctionPosterior {
    /// Not uncertain at all.
    Known(Box<Regression>, Function),
    Weights(Weights),
    Process(Process),
}

impl Gaussian {
    /// Nothing observed yet.
    pub fn new(world: &Regression) -> Gaussian {
        let noise_variance = world.config().noise_sd.powi(2);
        let function = match world.config().function {
            FunctionPrior::Linear { features, weight_sd } => {
                FunctionPosterior::Weights(Weights::new(features, weight_sd.powi(2)))
            }
            FunctionPrior::GaussianProcess { lengthscale, output_sd, .. } => {
                FunctionPosterior::Process(Process {
                    lengthscale,
                    output_variance: output_sd.powi(2),
                    inputs: Vec::new(),
                    told: Vec::new(),
                    factor: Vec::new(),
                    whitened: Vec::new(),
                })
            }
        };
        Gaussian { bins: world.bins().clone(), noise_variance, function }
    }

    /// The belief of one who knows the function, and is uncertain of the noise only.
    pub fn knowing(world: &Regression, function: &Function) -> Gaussian {
        Gaussian {
            function: FunctionPosterior::Known(Box::new(world.clone()), function.clone()),
            ..Gaussian::new(world)
        }
    }

    /// Mean and variance of the value at an input, noise included.
    pub fn moments(&self, x: &[f64]) -> (f64, f64) {
        let (mean, variance) = match &self.function {
            FunctionPosterior::Known(world, function) => (world.value(function, x), 0.0),
            FunctionPosterior::Weights(weights) => weights.moments(x),
            FunctionPosterior::Process(process) => {
                let (mean, variance, _) = process.moments(x);
                (mean, variance)
            }
        };
        (mean, variance + self.noise_variance)
    }

    /// The probability of each bin for the value at an input.
    pub fn predictive(&self, x: &[f64]) -> Vec<f64> {
        let (mean, variance) = self.moments(x);
        self.bins.masses(mean, variance.sqrt())
    }

    /// Takes in the value that was told for an input.
    pub fn observe(&mut self, x: &[f64], value: f64) {
        self.observe_weighing(x, value, Weighing::EXACT);
    }

    /// The same with the value's likelihood to the `power`, which is that of less noise, after all evidence before it was
    /// taken to the `discount`.
    pub fn observe_weighing(&mut self, x: &[f64], value: f64, Weighing { power, discount }: Weighing) {
        let noise_variance = self.noise_variance / power;
        match &mut self.function {
            FunctionPosterior::Known(..) => {}
            FunctionPosterior::Weights(weights) => {
                weights.forget(discount);
                weights.observe(x, value, noise_variance);
            }
            FunctionPosterior::Process(process) => {
                process.forget(discount);
                process.observe(x, value, noise_variance);
            }
        }
    }
}

/// The posterior of a linear function's weights, in information form: with X the inputs, precision XᵀX/σ² + I/τ² and
/// mean precision⁻¹ Xᵀy/σ².
#[derive(Clone, Debug)]
struct Weights {
    features: usize,
    prior_precision: f64,
    /// Features × features.
    precision: Vec<f64>,
    /// Xᵀy/σ²
    shift: Vec<f64>,
    /// The precision's lower Cholesky factor, one row a feature.
    factor: Vec<Vec<f64>>,
    /// The solution of factor · z = shift.
    whitened: Vec<f64>,
}

impl Weights {
    fn new(features: usize, weight_variance: f64) -> Weights {
        let mut weights = Weights {
            features,
            prior_precision: 1.0 / weight_variance,
            precision: vec![0.0; features * features],
            shift: vec![0.0; features],
            factor: Vec::new(),
            whitened: Vec::new(),
        };
        (0..features).for_each(|i| weights.precision[i * features + i] = weights.prior_precision);
        weights.solve();
        weights
    }

    /// Mean and variance of the function at an input: with P = L Lᵀ and w = L⁻¹x, they are w · L⁻¹shift and w · w.
    fn moments(&self, x: &[f64]) -> (f64, f64) {
        let w = solve_lower(&self.factor, x);
        (dot(&w, &self.whitened), dot(&w, &w))
    }

    /// Precision and shift are sums over observations, and the prior.
    fn forget(&mut self, discount: f64) {
        if discount == 1.0 {
            return;
        }
        for (at, entry) in self.precision.iter_mut().enumerate() {
            let prior = if at % (self.features + 1) == 0 { self.prior_precision } else { 0.0 };
            *entry = prior + discount * (*entry - prior);
        }
        self.shift.iter_mut().for_each(|entry| *entry *= discount);
    }

    fn observe(&mut self, x: &[f64], value: f64, noise_variance: f64) {
        for (i, xi) in x.iter().enumerate() {
            for (j, xj) in x.iter().enumerate() {
                self.precision[i * self.features + j] += xi * xj / noise_variance;
            }
            self.shift[i] += xi * value / noise_variance;
        }
        self.solve();
    }

    fn solve(&mut self) {
        self.factor.clear();
        for i in 0..self.features {
            let row = &self.precision[i * self.features..][..i];
            let mut new = solve_lower(&self.factor, row);
            let pivot = self.precision[i * self.features + i] - dot(&new, &new);
            new.push(pivot.sqrt());
            self.factor.push(new);
        }
        self.whitened = solve_lower(&self.factor, &self.shift);
    }
}

/// The posterior of a function drawn from a Gaussian process. With K the covariance of the values observed, noise
/// included, and k that of the function at x with them, mean kᵀK⁻¹y and variance k(x, x) - kᵀK⁻¹k.
#[derive(Clone, Debug)]
struct Process {
    lengthscale: f64,
    output_variance: f64,
    inputs: Vec<Vec<f64>>,
    /// What was told, and the variance of its noise.
    told: Vec<(f64, f64)>,
    /// K's lower Cholesky factor, which grows by a row with every observation.
    factor: Vec<Vec<f64>>,
    /// The solution of factor · z = values.
    whitened: Vec<f64>,
}

impl Process {
    /// Mean and variance of the function at an input, and factor⁻¹k.
    fn moments(&self, x: &[f64]) -> (f64, f64, Vec<f64>) {
        let kernel =
            |input: &Vec<f64>| self.output_variance * squared_exponential(input, x, self.lengthscale);
        let k: Vec<f64> = self.inputs.iter().map(kernel).collect();
        let w = solve_lower(&self.factor, &k);
        // What is left of the variance may round to a little below zero.
        (dot(&w, &self.whitened), (self.output_variance - dot(&w, &w)).max(0.0), w)
    }

    /// Evidence to a power below 1 is that of more noise.
    fn forget(&mut self, discount: f64) {
        if discount == 1.0 {
            return;
        }
        let (inputs, told) = (std::mem::take(&mut self.inputs), std::mem::take(&mut self.told));
        self.factor.clear();
        self.whitened.clear();
        for (x, (value, noise_variance)) in inputs.iter().zip(told) {
            self.observe(x, value, noise_variance / discount);
        }
    }

    fn observe(&mut self, x: &[f64], value: f64, noise_variance: f64) {
        let (mean, variance, mut row) = self.moments(x);
        let pivot = (variance + noise_variance).sqrt();
        self.whitened.push((value - mean) / pivot);
        row.push(pivot);
        self.factor.push(row);
        self.inputs.push(x.to_vec());
        self.told.push((value, noise_variance));
    }
}

/// Solves lower · z = values, for the first rows of a lower triangular matrix, as many as there are values.
fn solve_lower(lower: &[Vec<f64>], values: &[f64]) -> Vec<f64> {
    let mut solution: Vec<f64> = Vec::with_capacity(values.len() + 1);
    for (i, value) in values.iter().enumerate() {
        let rest = value - dot(&lower[i][..i], &solution);
        solution.push(rest / lower[i][i]);
    }
    solution
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
