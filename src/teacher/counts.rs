//! Conjugate counts: coins, dice and Markov chains whose rows are draws from Dirichlet distributions.

use super::rival::Weighing;
use crate::world::chain::Rows;

/// The posterior of a source with Dirichlet rows: the parameters plus what was counted.
///
/// The predictive distribution is (n_k + α_k) / (n + Σα), with the counts of the context that the sequence is in.
///
/// ```
/// use bayesteach::teacher::Counts;
/// use bayesteach::world::chain::Rows;
///
/// // Laplace's rule of succession: two heads out of three, and the next is heads with (2 + 1) / (3 + 2).
/// let mut belief = Counts::new(Rows::new(&[vec![1.0, 1.0]]));
/// for symbol in [0, 1, 0] {
///     belief.observe(symbol);
/// }
/// assert_eq!(belief.predictive(), [0.6, 0.4]);
/// ```
#[derive(Clone, Debug)]
pub struct Counts {
    alpha: Rows,
    /// Contexts × symbols.
    counts: Vec<Vec<f64>>,
    previous: Option<usize>,
}

impl Counts {
    /// Nothing observed yet; `alpha` has the parameters of each context's row.
    pub fn new(alpha: Rows) -> Counts {
        Counts { counts: vec![vec![0.0; alpha.symbols()]; alpha.contexts()], alpha, previous: None }
    }

    /// Takes in the next symbol.
    pub fn observe(&mut self, symbol: usize) {
        self.observe_weighing(symbol, Weighing::EXACT);
    }

    /// Takes in the next symbol: it counts as `power` symbols, and those before it `discount` times as many as so far.
    pub fn observe_weighing(&mut self, symbol: usize, Weighing { power, discount }: Weighing) {
        self.counts.iter_mut().flatten().for_each(|count| *count *= discount);
        // The first symbol of a chain is uniform whatever the rows are.
        if let Some(context) = self.alpha.context_after(self.previous) {
            self.counts[context][symbol] += power;
        }
        self.previous = Some(symbol);
    }

    /// The distribution of the next symbol.
    pub fn predictive(&self) -> Vec<f64> {
        let Some(context) = self.alpha.context_after(self.previous) else {
            return self.alpha.after(None);
        };
        let parameters = self.parameters(context);
        let total: f64 = parameters.iter().sum();
        parameters.iter().map(|a| a / total).collect()
    }

    /// The parameters of the posterior of a context's row.
    pub fn parameters(&self, context: usize) -> Vec<f64> {
        self.alpha.row(context).iter().zip(&self.counts[context]).map(|(a, n)| a + n).collect()
    }
}
