//! Regression: a user has a function, tells noisy values of it, and the bin of every next value is to be predicted.
//!
//! The functions are those of the prior-data fitted networks of Müller et al. 2022 (arXiv 2112.10510): weighted sums
//! of the inputs with normal weights (Bayesian linear regression), and draws from a Gaussian process with the
//! squared-exponential kernel. Inputs are uniform on [0, 1], in steps of 0.01, so that two decimals say all.
//!
//! A value is told with so many decimals that their step is at most a hundredth of the noise, and it is the told value
//! that falls into a bin. The first and the last bin take the tails. The teacher conditions on told values as if they
//! were exact, which makes its noise variance wrong by one part in 120,000 at most.
//!
//! A user's function is the same in all episodes. That of a Gaussian process is drawn at all inputs of the grid at
//! once: with the product kernel, its covariance is the Kronecker product of one factor per input dimension.

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::process::{LETTERS, Outcome};
use crate::error::usage;
use crate::rng::Stream;

/// Inputs are multiples of one over this.
const STEPS: usize = 100;

/// The part of a grid's variance that is added to make its covariance safely positive definite: at most a
/// millionth of the noise's variance.
const JITTER: f64 = 1e-12;

/// `[teacher.regression]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegressionConfig {
    /// Where users' functions come from.
    pub function: FunctionPrior,
    /// The standard deviation of the noise on a value.
    pub noise_sd: f64,
    /// Into how many bins values fall.
    pub bins: usize,
    /// The bins divide `low` to `high` evenly, but the first and the last take the tails.
    pub low: f64,
    /// See `low`.
    pub high: f64,
}

/// Where users' functions come from, as a config says it: `{ linear = { features = 1, weight_sd = 1.0 } }`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum FunctionPrior {
    /// A weighted sum of the inputs, without an offset.
    Linear {
        /// How many inputs.
        features: usize,
        /// The standard deviation of a weight; the mean is 0.
        weight_sd: f64,
    },
    /// A Gaussian process of mean 0 with the squared-exponential kernel.
    GaussianProcess {
        /// How many inputs, 1 or 2.
        features: usize,
        /// The kernel's length scale.
        lengthscale: f64,
        /// The standard deviation of the function at a point.
        output_sd: f64,
    },
}

impl Default for RegressionConfig {
    fn default() -> RegressionConfig {
        RegressionConfig {
            function: FunctionPrior::Linear { features: 1, weight_sd: 1.0 },
            noise_sd: 0.1,
            bins: 10,
            low: -2.0,
            high: 2.0,
        }
    }
}

impl RegressionConfig {
    /// Checks the config.
    ///
    /// # Errors
    /// Names the key, its value and what is possible.
    pub fn validate(&self) -> Result<()> {
        let within = |key: &str, value: f64, low: f64, high: f64| {
            // Written so that NaN fails too.
            if value >= low && value <= high {
                return Ok(());
            }
            Err(usage(format!("teacher.regression.{key} is {value}, {low} to {high} are possible")))
        };
        let (features, sd, most) = match self.function {
            FunctionPrior::Linear { features, weight_sd } => {
                within("function.linear.weight_sd", weight_sd, 1e-6, 1e6)?;
                (features, weight_sd, 20)
            }
            FunctionPrior::GaussianProcess { features, lengthscale, output_sd } => {
                within("function.gaussian-process.lengthscale", lengthscale, 1e-3, 1e3)?;
                within("function.gaussian-process.output_sd", output_sd, 1e-6, 1e6)?;
                (features, output_sd, 2)
            }
        };
        if !(1..=most).contains(&features) {
            return Err(usage(format!(
                "teacher.regression.function has {features} features, 1 to {most} are possible"
            )));
        }
        within("noise_sd", self.noise_sd, 1e-6, 1e6)?;
        // Beyond this the exact posterior would need more digits than an f64 has.
        if sd > 1e3 * self.noise_sd {
            return Err(usage(format!(
                "teacher.regression.function has a standard deviation of {sd}, more than 1,000 times noise_sd ({}): raise \
                 the noise",
                self.noise_sd
            )));
        }
        if !(2..=LETTERS.len()).contains(&self.bins) {
            return Err(usage(format!(
                "teacher.regression.bins is {}, 2 to {} are possible",
                self.bins,
                LETTERS.len()
            )));
        }
        within("low", self.low, -1e6, 1e6)?;
        within("high", self.high, -1e6, 1e6)?;
        let width = (self.high - self.low) / self.bins as f64;
        if width < self.noise_sd / 10.0 || width <= 0.0 {
            return Err(usage(format!(
                "teacher.regression.low {} and high {} leave {} bins a width of {width}, less than a tenth of noise_sd \
                 ({})",
                self.low, self.high, self.bins, self.noise_sd
            )));
        }
        Ok(())
    }
}

/// The regression world; see the module's documentation.
#[derive(Clone, Debug)]
pub struct Regression {
    config: RegressionConfig,
    bins: Bins,
    /// The lower Cholesky factor of a Gaussian process's covariance over one input's grid, of variance 1; row-major.
    factor: Arc<[f64]>,
    pub(super) labels: Arc<[String]>,
}

/// A user's function.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// The weights of the inputs.
    Weights(Vec<f64>),
    /// Independent standard normals, one for each point of the grid, which the covariance's factor turns into values.
    Normals(Vec<f64>),
}

impl Regression {
    /// Checks the config.
    ///
    /// # Errors
    /// If the config makes no sense.
    pub fn new(config: &RegressionConfig) -> Result<Regression> {
        config.validate()?;
        let factor = match config.function {
            FunctionPrior::Linear { .. } => Vec::new(),
            FunctionPrior::GaussianProcess { lengthscale, .. } => grid_factor(lengthscale),
        };
        let labels = match config.bins {
            ..=10 => (0..config.bins).map(|bin| bin.to_string()).collect(),
            _ => LETTERS[..config.bins].iter().map(char::to_string).collect(),
        };
        Ok(Regression { bins: Bins::new(config), config: config.clone(), factor: factor.into(), labels })
    }

    /// The settings.
    pub fn config(&self) -> &RegressionConfig {
        &self.config
    }

    /// The bins that values fall into.
    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// How many inputs a function has.
    pub fn features(&self) -> usize {
        match self.config.function {
            FunctionPrior::Linear { features, .. } | FunctionPrior::GaussianProcess { features, .. } => {
                features
            }
        }
    }

    /// The value of a function, without noise, at an input of the grid.
    pub fn value(&self, function: &Function, x: &[f64]) -> f64 {
        match (function, &self.config.function) {
            (Function::Normals(normals), FunctionPrior::GaussianProcess { output_sd, .. }) => {
                let n = STEPS + 1;
                let rows = x.iter().map(|x| (x * STEPS as f64).round() as usize);
                let rows: Vec<&[f64]> = rows.map(|i| &self.factor[i * n..][..=i]).collect();
                let sum = |normals: &[f64], row: &[f64]| -> f64 {
                    normals.iter().zip(row).map(|(z, l)| z * l).sum()
                };
                let unit = match rows[..] {
                    [first, second] => {
                        let inner: Vec<f64> =
                            normals.chunks(n).take(first.len()).map(|z| sum(z, second)).collect();
                        sum(&inner, first)
                    }
                    _ => sum(normals, rows[0]),
                };
                output_sd * unit
            }
            (Function::Weights(values) | Function::Normals(values), _) => {
                values.iter().zip(x).map(|(w, x)| w * x).sum()
            }
        }
    }

    pub(super) fn source(&self, user: &mut Stream) -> Function {
        match self.config.function {
            FunctionPrior::Linear { features, weight_sd } => {
                Function::Weights((0..features).map(|_| weight_sd * user.normal()).collect())
            }
            FunctionPrior::GaussianProcess { features, .. } => {
                let points = (STEPS + 1).pow(features as u32);
                Function::Normals((0..points).map(|_| user.normal()).collect())
            }
        }
    }

    /// An input, uniform on the grid.
    pub(super) fn draw_input(&self, draws: &mut Stream) -> Vec<f64> {
        (0..self.features()).map(|_| draws.below(STEPS + 1) as f64 / STEPS as f64).collect()
    }

    /// A noisy value at an input.
    pub(super) fn outcome(&self, function: &Function, x: &[f64], draws: &mut Stream) -> Outcome {
        let told = self.bins.told(self.value(function, x) + self.config.noise_sd * draws.normal());
        Outcome { option: self.bins.bin(told), value: Some(told) }
    }

    pub(super) fn opening(&self) -> String {
        let of_x = match (&self.config.function, self.features()) {
            (FunctionPrior::Linear { .. }, 1) => "a fixed multiple of x",
            (FunctionPrior::Linear { .. }, _) => "a fixed weighted sum of the numbers x",
            (FunctionPrior::GaussianProcess { .. }, 1) => "a fixed smooth function of x",
            (FunctionPrior::GaussianProcess { .. }, _) => "a fixed smooth function of the numbers x",
        };
        let first = &self.labels[0];
        let begins = self.bins.starts();
        let bins: Vec<String> = self.labels[1..]
            .iter()
            .zip(&begins)
            .map(|(label, start)| format!("{label} from {start}"))
            .collect();
        format!(
            "I measure y at one x after another. y is {of_x} plus noise. Predict the bin of every y: {first} below \
             {}, {}. Reply with the bin only.",
            begins[0],
            bins.join(", ")
        )
    }

    pub(super) fn inputs(&self, x: &[f64]) -> String {
        format!("x = {}", x.iter().map(|x| format!("{x:.2}")).collect::<Vec<_>>().join(", "))
    }

    pub(super) fn told(&self, truth: &Outcome) -> String {
        let label = &self.labels[truth.option];
        let value = truth.value.unwrap_or_default();
        format!("y = {value:.*}, bin {label}.", self.bins.decimals)
    }
}

/// The bins that told values fall into.
///
/// ```
/// use bayesteach::world::regression::{Bins, RegressionConfig};
///
/// // Ten bins over [-2, 2]: a value just below an edge may be told as the edge.
/// let bins = Bins::new(&RegressionConfig::default());
/// assert_eq!(bins.told(-1.60041), -1.6);
/// assert_eq!(bins.bin(-1.6), 1);
/// let masses = bins.masses(0.0, 1.0);
/// assert!((masses.iter().sum::<f64>() - 1.0).abs() < 1e-12);
/// ```
#[derive(Clone, Debug)]
pub struct Bins {
    /// Decimals of a told value.
    decimals: usize,
    /// The smallest told value of every bin but the first, counted in steps of the last decimal; ascending.
    starts: Vec<i64>,
}

impl Bins {
    /// The bins of a config that is valid.
    pub fn new(config: &RegressionConfig) -> Bins {
        // A hair less, so that rounding does not add a decimal.
        let decimals = (-(config.noise_sd / 100.0).log10() - 1e-9).ceil().max(0.0) as usize;
        let width = (config.high - config.low) / config.bins as f64;
        let start = |bin: usize| {
            let edge = config.low + width * bin as f64;
            (edge * 10_f64.powi(decimals as i32) - 1e-6).ceil() as i64
        };
        Bins { decimals, starts: (1..config.bins).map(start).collect() }
    }

    fn scale(&self) -> f64 {
        10_f64.powi(self.decimals as i32)
    }

    /// A value as it is told.
    pub fn told(&self, value: f64) -> f64 {
        // Adding 0 makes -0 a 0.
        (value * self.scale()).round() / self.scale() + 0.0
    }

    /// The bin of a told value.
    pub fn bin(&self, told: f64) -> usize {
        let steps = (told * self.scale()).round() as i64;
        self.starts.partition_point(|&start| start <= steps)
    }

    /// The probability of each bin for a value that is normal with this mean and standard deviation before it is
    /// rounded to be told.
    pub fn masses(&self, mean: f64, sd: f64) -> Vec<f64> {
        // What rounds to `start` or more.
        let edges = self.starts.iter().map(|&start| (start as f64 - 0.5) / self.scale());
        let mut masses = Vec::with_capacity(self.starts.len() + 1);
        let mut last = f64::NEG_INFINITY;
        for edge in edges.map(|edge| (edge - mean) / sd).chain([f64::INFINITY]) {
            masses.push(normal_between(last, edge));
            last = edge;
        }
        masses
    }

    /// The smallest told value of every bin but the first, as text.
    fn starts(&self) -> Vec<String> {
        self.starts.iter().map(|&start| (start as f64 / self.scale()).to_string()).collect()
    }
}

/// The standard normal's probability between two points, to full relative precision in both tails.
fn normal_between(low: f64, high: f64) -> f64 {
    let above = |z: f64| 0.5 * libm::erfc(z * std::f64::consts::FRAC_1_SQRT_2);
    if low > 0.0 { above(low) - above(high) } else { above(-high) - above(-low) }
}

/// The kernel of unit variance.
pub fn squared_exponential(a: &[f64], b: &[f64], lengthscale: f64) -> f64 {
    let squared: f64 = a.iter().zip(b).map(|(a, b)| ((a - b) / lengthscale).powi(2)).sum();
    (-0.5 * squared).exp()
}

/// The lower Cholesky factor of the kernel over the grid of one input, row-major.
fn grid_factor(lengthscale: f64) -> Vec<f64> {
    let n = STEPS + 1;
    let point = |i: usize| [i as f64 / STEPS as f64];
    let mut factor = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let jitter = if i == j { JITTER } else { 0.0 };
            let products: f64 = (0..j).map(|k| factor[i * n + k] * factor[j * n + k]).sum();
            let rest = squared_exponential(&point(i), &point(j), lengthscale) + jitter - products;
            // Rounding may take the last pivots of a very smooth kernel below the jitter, never far.
            factor[i * n + j] = if i == j { rest.max(0.1 * JITTER).sqrt() } else { rest / factor[j * n + j] };
        }
    }
    factor
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::rng;

    /// The factor times its transpose is the kernel, also for kernels so smooth that hardly any rank is left.
    #[test]
    fn the_grids_factor_gives_the_kernel_back() {
        let n = STEPS + 1;
        for lengthscale in [0.01, 0.1, 0.3, 3.0, 100.0] {
            let factor = grid_factor(lengthscale);
            for i in 0..n {
                for j in 0..n {
                    let product: f64 = (0..n).map(|k| factor[i * n + k] * factor[j * n + k]).sum();
                    let distance = (i as f64 - j as f64) / 100.0 / lengthscale;
                    let expected = (-distance * distance / 2.0).exp();
                    assert!((product - expected).abs() < 1e-7, "{lengthscale}: {i} {j} {product} {expected}");
                }
            }
        }
    }

    /// Covariances over many drawn functions of two inputs against the kernel.
    #[test]
    fn functions_of_two_inputs_have_the_kernels_covariance() {
        let function = FunctionPrior::GaussianProcess { features: 2, lengthscale: 0.4, output_sd: 1.5 };
        let world = Regression::new(&RegressionConfig { function, ..RegressionConfig::default() }).unwrap();
        let points = [[0.0, 0.0], [0.25, 0.1], [0.25, 0.6], [1.0, 0.93]];
        let n = 4000;
        let mut products = [[0.0; 4]; 4];
        for user in 0..n {
            let function = world.source(&mut rng::stream(2, "test", user));
            let values = points.map(|x| world.value(&function, &x));
            for (i, row) in products.iter_mut().enumerate() {
                row.iter_mut().zip(values).for_each(|(sum, value)| *sum += values[i] * value / n as f64);
            }
        }
        for (i, row) in products.iter().enumerate() {
            for (j, product) in row.iter().enumerate() {
                let squared: f64 = (0..2).map(|d| (points[i][d] - points[j][d]).powi(2)).sum();
                let expected = 2.25 * (-squared / (2.0 * 0.16)).exp();
                // Standard error of a product's mean: about 2.25·√(1 + ρ²)/√4000 ≤ .05.
                assert!((product - expected).abs() < 0.2, "{i} {j}: {product} {expected}");
            }
        }
    }

    /// Φ(-8) and Φ(-9) as tabulated, and far out, where a difference of two numbers near 1 would be 0.
    #[test]
    fn masses_keep_their_precision_in_the_tails() {
        let relative = |mass: f64, expected: f64| (mass / expected - 1.0).abs();
        assert!(relative(normal_between(8.0, 9.0), 6.220_960_574e-16 - 1.128_588_406e-19) < 1e-9);
        assert!(relative(normal_between(-9.0, -8.0), 6.220_960_574e-16 - 1.128_588_406e-19) < 1e-9);
        assert!(relative(normal_between(f64::NEG_INFINITY, 0.0), 0.5) < 1e-15);
        assert!(relative(normal_between(-1.0, 2.0), 0.818_594_614_120_364) < 1e-12);
    }

    #[test]
    fn bad_settings_are_refused() {
        let message = |toml: &str| {
            let config: RegressionConfig = toml::from_str(toml).unwrap();
            Regression::new(&config).unwrap_err().to_string()
        };
        assert!(message("noise_sd = 0.0").contains("noise_sd is 0"));
        assert!(message("bins = 27").contains("bins is 27"));
        assert!(message("low = 3.0").contains("leave"));
        assert!(message("low = nan").contains("low is NaN"));
        assert!(message("function = { linear = { features = 0, weight_sd = 1.0 } }").contains("0 features"));
        let gp = |features, lengthscale, output_sd| {
            format!(
                "function = {{ gaussian-process = {{ features = {features}, lengthscale = {lengthscale}, \
                 output_sd = {output_sd} }} }}"
            )
        };
        assert!(message(&gp(3, 0.1, 1.0)).contains("1 to 2"));
        assert!(message(&gp(1, 0.0, 1.0)).contains("lengthscale"));
        assert!(message(&gp(1, 0.1, 1e5)).contains("raise the noise"));
    }
}
