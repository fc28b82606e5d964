//! Every operation against its composed reference, candle's autograd, finite differences, plain loops where
//! they are short, and itself on another number of threads.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::LazyLock;

use anyhow::Result;
use bayesteach::ops::attention::{self, Rows, Spec};
use bayesteach::ops::dropout::Dropout;
use bayesteach::ops::glu::{self, Activation};
use bayesteach::ops::kl::{self, Targets};
use bayesteach::ops::linear::{self, Lora};
use bayesteach::ops::rms_norm::{self, Gain};
use bayesteach::ops::rope::{self, Angles};
use bayesteach::ops::{rows, vjp};
use bayesteach::rng::{self, Stream};
use candle_core::{DType, Device, Tensor};

static POOLS: LazyLock<[rayon::ThreadPool; 3]> =
    LazyLock::new(|| [1, 2, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap()));

/// Standard normal numbers that f32 holds exactly, in f64.
fn random(s: &mut Stream, shape: &[usize]) -> Tensor {
    let values = (0..shape.iter().product()).map(|_| f64::from(s.normal() as f32));
    Tensor::from_vec(values.collect::<Vec<_>>(), shape, &Device::Cpu).unwrap()
}

/// Uniform in `low..=high`.
fn between(s: &mut Stream, low: usize, high: usize) -> usize {
    low + s.below(high - low + 1)
}

fn pick<T: Copy>(s: &mut Stream, items: &[T]) -> T {
    items[s.below(items.len())]
}

/// Values in these tests are about 1.
const FLOOR: f64 = 0.01;

fn cast(tensors: &[Tensor], dtype: DType) -> Vec<Tensor> {
    tensors.iter().map(|t| t.to_dtype(dtype).unwrap()).collect()
}

fn values(t: &Tensor) -> Vec<f64> {
    t.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(tensors: &[Tensor]) -> Vec<u64> {
    let all: Vec<f64> = tensors.iter().flat_map(values).collect();
    assert!(all.iter().all(|v| v.is_finite()), "not finite");
    all.into_iter().map(f64::to_bits).collect()
}

/// A norm that a relative difference may divide by: of values whose root mean square is at least `floor`, so
/// that gradients that are 0 but for rounding compare as 0.
fn norm(x: &[f64], floor: f64) -> f64 {
    x.iter().map(|v| v * v).sum::<f64>().sqrt().max(floor * (x.len() as f64).sqrt())
}

fn relative_l2(got: &[f64], want: &[f64], floor: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).map(|(a, b)| (a - b) * (a - b)).sum::<f64>().sqrt() / norm(want, floor)
}

/// Relative to the largest value: finds single wrong elements that an L2 norm would drown.
fn relative_max(got: &[f64], want: &[f64], floor: f64) -> f64 {
    let largest = want.iter().fold(floor, |m, v| m.max(v.abs()));
    got.iter().zip(want).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest
}

fn close(what: &str, got: &Tensor, want: &Tensor, tolerance: f64) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    // In attention over one token dQ is 0, but a difference of numbers that f32 holds to 1e-6.
    let floor = if got.dtype() == DType::F64 { FLOOR } else { 0.3 };
    let (got, want) = (values(got), values(want));
    let difference = relative_l2(&got, &want, floor).max(relative_max(&got, &want, floor));
    // Not `difference > tolerance`, which NaN would pass.
    assert!(difference <= tolerance, "{what}: {difference:e}");
}

/// All of one operation on `inputs` (f64, exact in f32); `backward` gives a gradient for each input.
fn check(
    what: &str,
    inputs: &[Tensor],
    forward: impl Fn(&[Tensor]) -> Result<Tensor> + Sync,
    backward: impl Fn(&[Tensor], &Tensor) -> Result<Vec<Tensor>> + Sync,
    composed: impl Fn(&[Tensor]) -> Result<Tensor>,
) {
    let want = composed(inputs).unwrap();
    let mut s = rng::stream(0, what, 0);
    let dy = random(&mut s, want.dims());
    let refs: Vec<&Tensor> = inputs.iter().collect();
    let want_grads = vjp(&refs, &dy, |t| composed(t)).unwrap();

    // Half precision takes the composed form, so there only the dispatch is new.
    for (dtype, y_tolerance, grad_tolerance) in
        [(DType::F64, 1e-12, 1e-10), (DType::F32, 1e-5, 1e-5), (DType::BF16, 0.05, 0.05)]
    {
        let what = format!("{what} {dtype:?}");
        let (inputs, dy) = (cast(inputs, dtype), dy.to_dtype(dtype).unwrap());
        let run = || {
            let y = forward(&inputs).unwrap();
            [vec![y], backward(&inputs, &dy).unwrap()].concat()
        };
        let [one, two, _] = &*POOLS;
        let got = one.install(run);
        assert!(bits(&got) == bits(&two.install(run)), "{what}: depends on the number of threads");
        close(&what, &got[0], &want, y_tolerance);
        assert_eq!(got.len(), want_grads.len() + 1, "{what}");
        for (i, (got, want)) in got[1..].iter().zip(&want_grads).enumerate() {
            close(&format!("{what} gradient {i}"), got, want, grad_tolerance);
        }
    }

    let loss = |inputs: &[Tensor]| -> f64 {
        values(&forward(inputs).unwrap()).iter().zip(values(&dy)).map(|(a, b)| a * b).sum()
    };
    let grads = backward(inputs, &dy).unwrap();
    for (i, grad) in grads.iter().enumerate() {
        let direction = random(&mut s, inputs[i].dims());
        let step = 1e-4;
        let at = |steps: f64| {
            let mut moved = inputs.to_vec();
            moved[i] = (&moved[i] + (&direction * (steps * step)).unwrap()).unwrap();
            loss(&moved)
        };
        let slope = (8.0 * (at(1.0) - at(-1.0)) - (at(2.0) - at(-2.0))) / (12.0 * step);
        let got: f64 = values(grad).iter().zip(values(&direction)).map(|(a, b)| a * b).sum();
        // In a random direction the slope is about as large as the gradient's norm.
        let difference = (got - slope).abs() / norm(&values(grad), FLOOR);
        assert!(difference <= 1e-6, "{what}: slope {slope}, but input {i}'s gradient gives {got}");
    }
}

/// The results of `run` are the same bytes with 1, 2 and 3 threads.
fn same_on_any_threads(what: &str, run: impl Fn() -> Result<Vec<Tensor>> + Sync) {
    let [one, two, three] = POOLS.each_ref().map(|pool| bits(&pool.install(|| run().unwrap())));
    assert!(one == two && one == three, "{what}: depends on the number of threads");
}

/// Fails on every operation that takes what does not fit, and on every one that panics.
fn refuse<'a>(operations: impl IntoIterator<Item = (&'a str, Box<dyn Fn() -> bool + 'a>)>) {
    let mut wrong = Vec::new();
    for (what, is_error) in operations {
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(is_error)) {
            Ok(true) => {}
            Ok(false) => wrong.push(format!("{what} is accepted")),
            Err(_) => wrong.push(format!("{what} panics")),
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// `"what" => expression` pairs for [`refuse`].
macro_rules! refuse {
    ($($what:literal => $result:expr),* $(,)?) => {
        refuse([$(($what, Box::new(|| $result.is_err()) as Box<dyn Fn() -> bool + '_>)),*])
    };
}

fn zeros(shape: &[usize]) -> Tensor {
    Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap()
}

/// Of shape (3, 5), but laid out as its transpose.
fn strided() -> Tensor {
    zeros(&[5, 3]).t().unwrap()
}

// Linear

#[derive(Clone, Copy)]
struct LinearCase {
    bias: bool,
    lora: bool,
    dropout: bool,
}

const LORA_SCALE: f64 = 1.75;

fn dropout(p: f64, keys: &[u64]) -> Dropout {
    Dropout { p, seed: 5, keys: keys.to_vec() }
}

impl LinearCase {
    fn inputs(self, s: &mut Stream, n: usize, d_in: usize, d_out: usize, r: usize) -> Vec<Tensor> {
        let mut inputs = vec![random(s, &[n, d_in]), random(s, &[d_out, d_in])];
        if self.bias {
            inputs.push(random(s, &[d_out]));
        }
        if self.lora {
            inputs.extend([random(s, &[r, d_in]), random(s, &[d_out, r])]);
        }
        inputs
    }

    fn mask(self, x: &Tensor) -> Option<Tensor> {
        let mask = dropout(0.3, &[9]).mask("m", &[0, x.dim(0).unwrap() as u32], x);
        self.dropout.then(|| mask.unwrap())
    }

    fn bias(self, t: &[Tensor]) -> Option<&Tensor> {
        self.bias.then(|| &t[2])
    }

    fn adapter<'a>(self, t: &'a [Tensor], mask: &'a Option<Tensor>) -> Option<Lora<'a>> {
        let at = if self.bias { 3 } else { 2 };
        self.lora.then(|| Lora { a: &t[at], b: &t[at + 1], scale: LORA_SCALE, mask: mask.as_ref() })
    }

    fn forward(self, t: &[Tensor]) -> Result<Tensor> {
        let mask = self.mask(&t[0]);
        linear::forward(&t[0], &t[1], self.bias(t), self.adapter(t, &mask))
    }

    fn composed(self, t: &[Tensor]) -> Result<Tensor> {
        let mask = self.mask(&t[0]);
        linear::composed(&t[0], &t[1], self.bias(t), self.adapter(t, &mask))
    }

    fn backward(self, t: &[Tensor], dy: &Tensor) -> Result<Vec<Tensor>> {
        let mask = self.mask(&t[0]);
        let mut dx = None;
        let adapter = linear::backward(&t[0], &t[1], self.adapter(t, &mask), dy, Some(&mut dx))?;
        let mut grads = vec![dx.unwrap(), linear::weight_grad(&t[0], dy)?];
        if self.bias {
            grads.push(linear::bias_grad(dy)?);
        }
        assert_eq!(adapter.is_some(), self.lora);
        grads.extend(adapter.into_iter().flat_map(|g| [g.a, g.b]));
        Ok(grads)
    }
}

#[test]
fn linear() {
    for seed in 0..6 {
        for case in 0..6 {
            let case = LinearCase { bias: case % 2 == 1, lora: case >= 2, dropout: case >= 4 };
            let mut s = rng::stream(seed, "linear", 0);
            let (n, r) = (between(&mut s, 1, 90), between(&mut s, 1, 9));
            let (d_in, d_out) = (between(&mut s, 1, 70), between(&mut s, 1, 70));
            let inputs = case.inputs(&mut s, n, d_in, d_out, r);
            check(
                &format!("linear {n} {d_in} {d_out} {r}"),
                &inputs,
                |t| case.forward(t),
                |t, dy| case.backward(t, dy),
                |t| case.composed(t),
            );
        }
    }
}

#[test]
fn linear_adds_to_the_gradient_it_is_given() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for case in 0..3 {
            let case = LinearCase { bias: false, lora: case >= 1, dropout: case >= 2 };
            let mut s = rng::stream(1, "linear/sum", 0);
            let t = cast(&case.inputs(&mut s, 17, 12, 20, 3), dtype);
            let dy = random(&mut s, &[17, 20]).to_dtype(dtype).unwrap();
            let before = random(&mut s, &[17, 12]).to_dtype(dtype).unwrap();
            let mask = case.mask(&t[0]);
            let backward = |dx: &mut Option<Tensor>| {
                linear::backward(&t[0], &t[1], case.adapter(&t, &mask), &dy, Some(dx)).unwrap()
            };
            let (mut alone, mut sum) = (None, Some(before.copy().unwrap()));
            backward(&mut alone);
            backward(&mut sum);
            let want = (before + alone.unwrap()).unwrap();
            let tolerance = if dtype == DType::BF16 { 0.02 } else { 1e-6 };
            close("sum", &sum.unwrap(), &want, tolerance);
            // Without `dx` the adapter's gradients are the same.
            let with = backward(&mut None).map(|g| bits(&[g.a, g.b]));
            let without = linear::backward(&t[0], &t[1], case.adapter(&t, &mask), &dy, None).unwrap();
            assert_eq!(with, without.map(|g| bits(&[g.a, g.b])));
        }
    }
}

/// Layers that share an input, with and without adapters of different ranks, give what each gives alone. The depth
/// is such that gradients of adapters are summed in parts.
#[test]
#[allow(clippy::type_complexity, reason = "a layer's tensors, once")]
fn linears_that_share_an_input_do_what_each_does_alone() {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5)] {
        for dropped in [false, true] {
            let mut s = rng::stream(3, "linear/shared", 0);
            let (n, d_in) = (1300, 24);
            let x = random(&mut s, &[n, d_in]).to_dtype(dtype).unwrap();
            let cases = [(30, Some(3)), (16, None), (50, Some(8)), (7, Some(1))];
            type Drawn = (Tensor, Option<(Tensor, Tensor)>, Tensor);
            let tensors: Vec<Drawn> = cases
                .iter()
                .map(|&(d_out, r)| {
                    let mut draw = |shape: &[usize]| random(&mut s, shape).to_dtype(dtype).unwrap();
                    let lora = r.map(|r| (draw(&[r, d_in]), draw(&[d_out, r])));
                    (draw(&[d_out, d_in]), lora, draw(&[n, d_out]))
                })
                .collect();
            let mask = dropout(0.3, &[9]).mask("m", &[0, n as u32], &x).unwrap();
            let layers: Vec<(linear::Layer, &Tensor)> = tensors
                .iter()
                .map(|(weight, lora, dy)| {
                    let lora = lora.as_ref().map(|(a, b)| {
                        // Not every adapter has dropout.
                        let mask = (dropped && a.dim(0).unwrap() > 1).then_some(&mask);
                        Lora { a, b, scale: LORA_SCALE, mask }
                    });
                    (linear::Layer { weight, bias: None, lora }, dy)
                })
                .collect();
            let alone: Vec<linear::Layer> = layers.iter().map(|(layer, _)| *layer).collect();
            let together = linear::forward_all(&x, &alone).unwrap();
            let mut dx = None;
            let grads = linear::backward_all(&x, &layers, Some(&mut dx)).unwrap();
            let mut sum = x.zeros_like().unwrap();
            for (((layer, dy), y), grad) in layers.iter().zip(&together).zip(&grads) {
                let composed = linear::composed(&x, layer.weight, None, layer.lora).unwrap();
                close("y", y, &composed, tolerance);
                let Some(lora) = layer.lora else {
                    assert!(grad.is_none());
                    sum = (sum + dy.matmul(layer.weight).unwrap()).unwrap();
                    continue;
                };
                let want = vjp(&[&x, lora.a, lora.b], dy, |t| {
                    linear::composed(&t[0], layer.weight, None, Some(Lora { a: &t[1], b: &t[2], ..lora }))
                })
                .unwrap();
                sum = (sum + &want[0]).unwrap();
                let grad = grad.as_ref().unwrap();
                close("dA", &grad.a, &want[1], tolerance);
                close("dB", &grad.b, &want[2], tolerance);
            }
            close("dx", &dx.unwrap(), &sum, tolerance);
        }
    }
}

// AdamW

#[test]
fn adamw_is_the_composed_update() {
    use bayesteach::ops::adamw::{self, Moments, Step};
    for (dtype, tolerance) in [(DType::F64, 1e-13), (DType::F32, 1e-6)] {
        let mut s = rng::stream(4, "adamw", 0);
        let mut draw = |shape: &[usize]| random(&mut s, shape).to_dtype(dtype).unwrap();
        for shape in [[1, 1], [300, 200], [7, 5]] {
            let second = draw(&shape).sqr().unwrap();
            let old = Moments { parameter: draw(&shape), first: draw(&shape), second };
            let gradient = draw(&shape);
            for number in [1, 2, 1000] {
                let step =
                    Step { lr: 0.01, betas: [0.9, 0.98], eps: 1e-8, weight_decay: 0.1, number, factor: 0.7 };
                let (new, want) = (
                    adamw::update(&old, &gradient, &step).unwrap(),
                    adamw::composed(&old, &gradient, &step).unwrap(),
                );
                close("parameter", &new.parameter, &want.parameter, tolerance);
                close("first", &new.first, &want.first, tolerance);
                close("second", &new.second, &want.second, tolerance);
            }
        }
        let old = Moments { parameter: draw(&[2, 3]), first: draw(&[2, 3]), second: draw(&[2, 3]) };
        let step = Step { lr: 0.1, betas: [0.9, 0.9], eps: 0.0, weight_decay: 0.0, number: 1, factor: 1.0 };
        let other = draw(&[3, 2]);
        refuse! { "a gradient of another shape" => adamw::update(&old, &other, &step) }
    }
}

#[test]
fn linear_refuses_what_does_not_fit() {
    let (x, w, dy) = (zeros(&[3, 5]), zeros(&[4, 5]), zeros(&[3, 4]));
    let (a, b, mask) = (zeros(&[2, 5]), zeros(&[4, 2]), zeros(&[3, 5]));
    let f64s = w.to_dtype(DType::F64).unwrap();
    let good = Lora { a: &a, b: &b, scale: 1.0, mask: Some(&mask) };
    assert!(linear::forward(&x, &w, Some(&zeros(&[4])), Some(good)).is_ok());
    assert!(linear::backward(&x, &w, Some(good), &dy, Some(&mut None)).is_ok());
    let (short, long, flat) = (zeros(&[2, 5]), zeros(&[4, 5]), zeros(&[5]));
    let (narrow, wide) = (zeros(&[3, 4]), zeros(&[3, 6]));
    let (a4, a6, a1, b3, b5) = (zeros(&[2, 4]), zeros(&[2, 6]), zeros(&[2]), zeros(&[4, 3]), zeros(&[5, 2]));
    let (lora, backward) = (
        |a, b, mask| linear::forward(&x, &w, None, Some(Lora { a, b, scale: 1.0, mask })),
        |a, b, mask| linear::backward(&x, &w, Some(Lora { a, b, scale: 1.0, mask }), &dy, Some(&mut None)),
    );
    let onto = |sum: Tensor| linear::backward(&x, &w, None, &dy, Some(&mut Some(sum)));
    refuse! {
        "x too narrow" => linear::forward(&narrow, &w, None, None),
        "x too wide" => linear::forward(&wide, &w, None, None),
        "x flat" => linear::forward(&flat, &w, None, None),
        "x strided" => linear::forward(&strided(), &w, None, None),
        "weight flat" => linear::forward(&x, &flat, None, None),
        "weight of another dtype" => linear::forward(&x, &f64s, None, None),
        "weight strided" => linear::forward(&x, &zeros(&[5, 4]).t().unwrap(), None, None),
        "bias too short" => linear::forward(&x, &w, Some(&zeros(&[3])), None),
        "bias too long" => linear::forward(&x, &w, Some(&zeros(&[5])), None),
        "bias a matrix" => linear::forward(&x, &w, Some(&zeros(&[2, 2])), None),
        "A too narrow" => lora(&a4, &b, None),
        "A too wide" => lora(&a6, &b, None),
        "A flat" => lora(&a1, &b, None),
        "B of another rank" => lora(&a, &b3, None),
        "B too long" => lora(&a, &b5, None),
        "mask too short" => lora(&a, &b, Some(&short)),
        "mask too wide" => lora(&a, &b, Some(&wide)),
        "backward: x too short" => linear::backward(&short, &w, Some(good), &dy, None),
        "backward: dy too short" => linear::backward(&x, &w, None, &zeros(&[2, 4]), Some(&mut None)),
        "backward: dy too long" => linear::backward(&x, &w, None, &zeros(&[4, 4]), Some(&mut None)),
        "backward: dy too short, LoRA" => linear::backward(&x, &w, Some(good), &zeros(&[2, 4]), None),
        "backward: dy too long, LoRA" => linear::backward(&x, &w, Some(good), &zeros(&[4, 4]), None),
        "backward: dy too wide" => linear::backward(&x, &w, None, &zeros(&[3, 5]), Some(&mut None)),
        "backward: A too narrow" => backward(&a4, &b, None),
        "backward: A too wide" => backward(&a6, &b, None),
        "backward: B of another rank" => backward(&a, &b3, None),
        "backward: B too long" => backward(&a, &b5, None),
        "backward: mask too wide" => backward(&a, &b, Some(&wide)),
        "backward: sum too short" => onto(short.clone()),
        "backward: sum too long" => onto(long.clone()),
        "backward: sum too wide" => onto(wide.clone()),
        "weight_grad: lengths" => linear::weight_grad(&x, &zeros(&[2, 4])),
        "weight_grad: longer" => linear::weight_grad(&x, &zeros(&[4, 4])),
    }
}

// Dropout

#[test]
fn dropout_masks_depend_on_their_key_only() {
    let mask = |p, keys: &[u64], module: &str, boundaries: &[u32]| {
        let like = Tensor::zeros((1, 40), DType::F32, &Device::Cpu).unwrap();
        let mask = dropout(p, keys).mask(module, boundaries, &like).unwrap();
        assert_eq!(mask.dims(), [*boundaries.last().unwrap() as usize, 40]);
        values(&mask)
    };
    let whole = mask(0.25, &[3, 7, 8], "a", &[0, 30, 31, 100]);
    let parts =
        [mask(0.25, &[3], "a", &[0, 30]), mask(0.25, &[7], "a", &[0, 1]), mask(0.25, &[8], "a", &[0, 69])];
    assert_eq!(whole, parts.concat());
    assert_ne!(whole, mask(0.25, &[3, 7, 8], "b", &[0, 30, 31, 100]));
    assert_ne!(parts[0], mask(0.25, &[4], "a", &[0, 30]));
    let kept = f64::from((1.0 / 0.75) as f32);
    assert!(whole.iter().all(|&f| f == 0.0 || f == kept));
    let mean = whole.iter().sum::<f64>() / whole.len() as f64;
    assert!((mean - 1.0).abs() < 0.05, "{mean}");
    assert!(mask(0.0, &[3], "a", &[0, 30]).iter().all(|&f| f == 1.0));
    // A long sequence is drawn in pieces: the words of one stream, in its order.
    let mut stream = rng::stream(5, "dropout/a", 4);
    let long = mask(0.25, &[3, 4], "a", &[0, 30, 1030]);
    assert!(long[30 * 40..].iter().all(|&f| (f == 0.0) == (stream.bits() < 1 << 30)));
    same_on_any_threads("dropout", || {
        let keys: Vec<u64> = (0..50).collect();
        let boundaries: Vec<u32> = (0..=50).map(|i| i * 13).collect();
        let like = Tensor::zeros((1, 40), DType::F32, &Device::Cpu)?;
        Ok(vec![dropout(0.5, &keys).mask("a", &boundaries, &like)?])
    });
}

// RMSNorm

#[test]
fn rms_norm() {
    for seed in 0..8 {
        for gain in [Gain::Weight, Gain::OnePlusWeight] {
            let mut s = rng::stream(seed, "rms_norm", 0);
            let (n, width) = (between(&mut s, 1, 400), between(&mut s, 3, 90));
            let eps = pick(&mut s, &[1e-6, 1e-5, 0.3]);
            let inputs = [random(&mut s, &[n, width]), random(&mut s, &[width])];
            check(
                &format!("rms_norm {n} {width} {gain:?}"),
                &inputs,
                |t| rms_norm::forward(&t[0], &t[1], eps, gain),
                |t, dy| {
                    let (dx, dw) = rms_norm::backward(&t[0], &t[1], dy, eps, gain, true)?;
                    let (alone, none) = rms_norm::backward(&t[0], &t[1], dy, eps, gain, false)?;
                    assert!(none.is_none() && bits(&[alone]) == bits(std::slice::from_ref(&dx)));
                    Ok(vec![dx, dw.unwrap()])
                },
                |t| rms_norm::composed(&t[0], &t[1], eps, gain),
            );
        }
    }
}

#[test]
fn rms_norm_refuses_what_does_not_fit() {
    let (x, w) = (zeros(&[3, 5]), zeros(&[5]));
    let forward = |x: &Tensor, w: &Tensor| rms_norm::forward(x, w, 1e-6, Gain::Weight);
    let backward =
        |x: &Tensor, w: &Tensor, dy: &Tensor| rms_norm::backward(x, w, dy, 1e-6, Gain::Weight, true);
    assert!(forward(&x, &w).is_ok() && backward(&x, &w, &x).is_ok());
    refuse! {
        "x flat" => forward(&w, &w),
        "x strided" => forward(&strided(), &w),
        "w too short" => forward(&x, &zeros(&[4])),
        "w too long" => forward(&x, &zeros(&[6])),
        "w of another dtype" => forward(&x, &w.to_dtype(DType::F64).unwrap()),
        "backward: w too short" => backward(&x, &zeros(&[4]), &x),
        "backward: w too long" => backward(&x, &zeros(&[6]), &x),
        "backward: dy too short" => backward(&x, &w, &zeros(&[2, 5])),
        "backward: dy too long" => backward(&x, &w, &zeros(&[4, 5])),
        "backward: dy too wide" => backward(&x, &w, &zeros(&[3, 6])),
        "backward: dy of the other shape" => backward(&x, &w, &zeros(&[5, 3])),
    }
}

// RoPE

fn inv_freq(half: usize) -> Vec<f32> {
    (0..half).map(|i| 10_000f32.powf(-(i as f32) / half as f32)).collect()
}

fn angles(positions: &[u32], half: usize, dtype: DType) -> Angles {
    Angles::new(positions, &inv_freq(half), dtype, &Device::Cpu).unwrap()
}

#[test]
fn rope() {
    for seed in 0..8 {
        let mut s = rng::stream(seed, "rope", 0);
        let (n, heads, half) = (between(&mut s, 1, 300), between(&mut s, 1, 5), between(&mut s, 1, 12));
        let positions: Vec<u32> = (0..n).map(|_| s.below(5_000) as u32).collect();
        check(
            &format!("rope {n} {heads} {half}"),
            &[random(&mut s, &[n, heads * 2 * half])],
            |t| rope::forward(&t[0], &angles(&positions, half, t[0].dtype())),
            |t, dy| Ok(vec![rope::backward(dy, &angles(&positions, half, t[0].dtype()))?]),
            |t| rope::composed(&t[0], &angles(&positions, half, t[0].dtype())),
        );
    }
}

#[test]
fn rope_turns_pairs_by_their_angles() {
    let (positions, half) = ([0, 1, 7, 1_000], 3);
    let mut s = rng::stream(0, "rope/loops", 0);
    let x = random(&mut s, &[4, 2 * 2 * half]);
    let y = values(&rope::forward(&x, &angles(&positions, half, DType::F64)).unwrap());
    let x = values(&x);
    for (row, &position) in positions.iter().enumerate() {
        for head in 0..2 {
            for (i, f) in inv_freq(half).into_iter().enumerate() {
                let (sin, cos) = f64::from(position as f32 * f).sin_cos();
                let first = row * 4 * half + head * 2 * half + i;
                let second = first + half;
                assert!((y[first] - (x[first] * cos - x[second] * sin)).abs() < 1e-12);
                assert!((y[second] - (x[second] * cos + x[first] * sin)).abs() < 1e-12);
            }
        }
    }
}

#[test]
fn rope_refuses_what_does_not_fit() {
    let fit = |n: u32, half| angles(&(0..n).collect::<Vec<_>>(), half, DType::F32);
    let x = zeros(&[3, 8]);
    assert!(rope::forward(&x, &fit(3, 2)).is_ok() && rope::backward(&x, &fit(3, 2)).is_ok());
    refuse! {
        "too few positions" => rope::forward(&x, &fit(2, 2)),
        "too many positions" => rope::forward(&x, &fit(4, 2)),
        "heads do not divide the width" => rope::forward(&x, &fit(3, 3)),
        "no frequencies" => rope::forward(&x, &fit(3, 0)),
        "x flat" => rope::forward(&zeros(&[8]), &fit(3, 2)),
        "x strided" => rope::forward(&zeros(&[8, 3]).t().unwrap(), &fit(3, 2)),
        "angles of another dtype" => rope::forward(&x, &angles(&[0, 1, 2], 2, DType::F64)),
        "backward: too few positions" => rope::backward(&x, &fit(2, 2)),
        "backward: heads do not divide the width" => rope::backward(&x, &fit(3, 3)),
    }
}

// Gated activation

#[test]
fn glu() {
    for seed in 0..6 {
        for activation in [Activation::Silu, Activation::GeluTanh] {
            let mut s = rng::stream(seed, "glu", 0);
            let (n, width) = (between(&mut s, 1, 300), between(&mut s, 1, 120));
            let gate = (random(&mut s, &[n, width]) * 3.0).unwrap();
            check(
                &format!("glu {n} {width} {activation:?}"),
                &[gate, random(&mut s, &[n, width])],
                |t| glu::forward(&t[0], &t[1], activation),
                |t, dy| {
                    let (gate, up) = glu::backward(&t[0], &t[1], dy, activation)?;
                    Ok(vec![gate, up])
                },
                |t| glu::composed(&t[0], &t[1], activation),
            );
        }
    }
}

#[test]
fn glu_is_right_far_out() {
    let gates: [f32; 10] = [-3e4, -500.0, -100.0, -50.0, -0.0, 0.0, 50.0, 100.0, 500.0, 3e4];
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let gate = Tensor::new(&gates[..], &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
            let gate = gate.unsqueeze(0).unwrap();
            let one = gate.ones_like().unwrap();
            let y = glu::forward(&gate, &one, activation).unwrap();
            let (gate_grad, up_grad) = glu::backward(&gate, &one, &one, activation).unwrap();
            let composed = vjp(&[&gate, &one], &one, |t| glu::composed(&t[0], &t[1], activation)).unwrap();
            for (i, &x) in gates.iter().enumerate() {
                let what = format!("{activation:?} {dtype:?} at {x}");
                let value = f64::from(x.max(0.0));
                let slope = if x == 0.0 { 0.5 } else { f64::from(u8::from(x > 0.0)) };
                for (got, want) in [(&y, value), (&up_grad, value), (&composed[1], value)] {
                    assert!((values(got)[i] - want).abs() <= want * 1e-2 + 1e-15, "{what}: {got}");
                }
                for got in [&gate_grad, &composed[0]] {
                    assert!((values(got)[i] - slope).abs() < 1e-6, "{what}: slope {got}");
                }
            }
        }
    }
}

#[test]
fn glu_is_right_at_every_gate() {
    let gates: Vec<f32> = (-2_000..2_000).map(|i| i as f32 * 0.0049).collect();
    let gate = Tensor::new(&gates[..], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let (one, exact) = (gate.ones_like().unwrap(), gate.to_dtype(DType::F64).unwrap());
    for activation in [Activation::Silu, Activation::GeluTanh] {
        let got = values(&glu::forward(&gate, &one, activation).unwrap());
        let want = values(&glu::composed(&exact, &exact.ones_like().unwrap(), activation).unwrap());
        for ((got, want), x) in got.iter().zip(want).zip(&gates) {
            let tolerance = 3e-7 * (f64::from(x.abs()) + want.abs());
            assert!((got - want).abs() <= tolerance, "{activation:?} at {x}: {got}, not {want}");
        }
    }
}

#[test]
fn glu_refuses_what_does_not_fit() {
    let x = zeros(&[3, 5]);
    let forward = |g: &Tensor, u: &Tensor| glu::forward(g, u, Activation::Silu);
    let backward = |g: &Tensor, u: &Tensor, dy: &Tensor| glu::backward(g, u, dy, Activation::Silu);
    assert!(forward(&x, &x).is_ok() && backward(&x, &x, &x).is_ok());
    refuse! {
        "up too short" => forward(&x, &zeros(&[2, 5])),
        "up too long" => forward(&x, &zeros(&[4, 5])),
        "up of the other shape" => forward(&x, &zeros(&[5, 3])),
        "up strided" => forward(&x, &strided()),
        "up of another dtype" => forward(&x, &x.to_dtype(DType::F64).unwrap()),
        "flat" => forward(&zeros(&[5]), &zeros(&[5])),
        "backward: up too short" => backward(&x, &zeros(&[2, 5]), &x),
        "backward: up too long" => backward(&x, &zeros(&[4, 5]), &x),
        "backward: dy too short" => backward(&x, &x, &zeros(&[2, 5])),
        "backward: dy too long" => backward(&x, &x, &zeros(&[4, 5])),
        "backward: dy of the other shape" => backward(&x, &x, &zeros(&[5, 3])),
    }
}

// Attention

fn boundaries(lengths: &[usize]) -> Vec<u32> {
    let mut boundaries = vec![0];
    for length in lengths {
        boundaries.push(boundaries[boundaries.len() - 1] + *length as u32);
    }
    boundaries
}

fn qkv(s: &mut Stream, n: usize, spec: &Spec) -> [Tensor; 3] {
    let (width, kv_width) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    [random(s, &[n, width]), random(s, &[n, kv_width]), random(s, &[n, kv_width])]
}

/// All rows ask.
fn all(boundaries: &[u32]) -> Rows<'_> {
    Rows { boundaries, queries: None }
}

fn attention_backward(t: &[Tensor], dy: &Tensor, rows: Rows, spec: &Spec) -> Result<Vec<Tensor>> {
    let (y, saved) = attention::forward(&t[0], &t[1], &t[2], rows, spec)?;
    let (dq, dk, dv) = attention::backward((&t[0], &t[1], &t[2]), &y, &saved, dy, rows, spec)?;
    Ok(vec![dq, dk, dv])
}

fn check_attention(s: &mut Stream, lengths: &[usize], spec: &Spec) {
    let boundaries = boundaries(lengths);
    let inputs = qkv(s, lengths.iter().sum(), spec);
    let by_loops = attention_by_loops(&inputs, &boundaries, spec);
    let n = by_loops.len() / (spec.heads * spec.head_dim);
    let some: Vec<u32> = (0..n as u32).filter(|_| s.uniform() < 0.3).collect();
    for queries in [None, Some(&some[..])] {
        let what = format!("attention over {lengths:?} at {queries:?} of {spec:?}");
        let rows = Rows { boundaries: &boundaries, queries };
        let at = |x: &Tensor| match queries {
            Some(queries) => x.index_select(&Tensor::new(queries, &Device::Cpu).unwrap(), 0).unwrap(),
            None => x.clone(),
        };
        let inputs = [at(&inputs[0]), inputs[1].clone(), inputs[2].clone()];
        if !queries.is_some_and(<[u32]>::is_empty) {
            check(
                &what,
                &inputs,
                |t| Ok(attention::forward(&t[0], &t[1], &t[2], rows, spec)?.0),
                |t, dy| attention_backward(t, dy, rows, spec),
                |t| attention::composed(&t[0], &t[1], &t[2], rows, spec),
            );
        }
        let by_loops = Tensor::from_vec(by_loops.clone(), (n, spec.heads * spec.head_dim), &Device::Cpu);
        let (y, _) = attention::forward(&inputs[0], &inputs[1], &inputs[2], rows, spec).unwrap();
        assert!(relative_max(&values(&y), &values(&at(&by_loops.unwrap())), FLOOR) < 1e-12, "{what}");
    }
}

/// One query after the other, nothing shared with the code under test.
fn attention_by_loops([q, k, v]: &[Tensor; 3], boundaries: &[u32], spec: &Spec) -> Vec<f64> {
    let (q, k, v) = (values(q), values(k), values(v));
    let d = spec.head_dim;
    let (width, kv_width) = (spec.heads * d, spec.kv_heads * d);
    let mut out = vec![0.0; q.len()];
    for sequence in boundaries.windows(2) {
        let (first, end) = (sequence[0] as usize, sequence[1] as usize);
        for query in first..end {
            for head in 0..spec.heads {
                let kv_head = head / (spec.heads / spec.kv_heads);
                let seen = (first..=query).filter(|key| spec.window.is_none_or(|w| query - key < w));
                let mut total = 0.0;
                let mut sums = vec![0.0; d];
                for key in seen {
                    let dot: f64 = (0..d)
                        .map(|i| q[query * width + head * d + i] * k[key * kv_width + kv_head * d + i])
                        .sum();
                    let score = spec.softcap.map_or(dot * spec.scale, |c| c * (dot * spec.scale / c).tanh());
                    total += score.exp();
                    for (i, sum) in sums.iter_mut().enumerate() {
                        *sum += score.exp() * v[key * kv_width + kv_head * d + i];
                    }
                }
                for (i, sum) in sums.into_iter().enumerate() {
                    out[query * width + head * d + i] = sum / total;
                }
            }
        }
    }
    out
}

#[test]
fn attention_at_the_edges_of_tiles_and_windows() {
    let spec = Spec { heads: 2, kv_heads: 1, head_dim: 4, scale: 0.5, softcap: None, window: None };
    let mut s = rng::stream(0, "attention/edges", 0);
    for lengths in [&[1][..], &[63], &[64], &[65], &[128], &[129], &[1, 200, 64, 1, 3], &[2, 0, 70]] {
        for (window, softcap) in [
            (None, None),
            (None, Some(1.5)),
            (Some(1), None),
            (Some(2), Some(1.5)),
            (Some(63), None),
            (Some(64), Some(1.5)),
            (Some(65), None),
            (Some(66), None),
            (Some(100), Some(1.5)),
            (Some(1_000), None),
        ] {
            check_attention(&mut s, lengths, &Spec { window, softcap, ..spec });
        }
    }
}

#[test]
fn attention_of_random_shapes() {
    for seed in 0..16 {
        let mut s = rng::stream(seed, "attention", 0);
        let kv_heads = between(&mut s, 1, 3);
        let spec = Spec {
            heads: kv_heads * between(&mut s, 1, 3),
            kv_heads,
            head_dim: between(&mut s, 1, 20),
            scale: 0.2 + s.uniform(),
            softcap: pick(&mut s, &[None, None, Some(0.7), Some(20.0)]),
            window: pick(&mut s, &[None, Some(5), Some(31), Some(70), Some(130)]),
        };
        let lengths: Vec<usize> =
            (0..between(&mut s, 1, 4)).map(|_| pick(&mut s, &[1, 2, 5, 40, 64, 90, 150])).collect();
        check_attention(&mut s, &lengths, &spec);
    }
}

#[test]
fn attention_bears_large_scores() {
    let spec = Spec { heads: 1, kv_heads: 1, head_dim: 2, scale: 1.0, softcap: None, window: None };
    let q = Tensor::new(&[[300f32, 0.0], [300.0, 0.0], [300.0, 0.0]], &Device::Cpu).unwrap();
    let k = Tensor::new(&[[-300f32, 0.0], [300.0, 0.0], [0.0, 0.0]], &Device::Cpu).unwrap();
    let v = Tensor::new(&[[1f32, 2.0], [3.0, 4.0], [5.0, 6.0]], &Device::Cpu).unwrap();
    let (y, _) = attention::forward(&q, &k, &v, all(&[0, 3]), &spec).unwrap();
    assert_eq!(values(&y), [1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    let grads = attention_backward(&[q, k, v], &y.ones_like().unwrap(), all(&[0, 3]), &spec).unwrap();
    assert_eq!(values(&grads[2]), [1.0, 1.0, 2.0, 2.0, 0.0, 0.0]);
    assert!(grads.iter().flat_map(values).all(f64::is_finite));
}

#[test]
fn attention_refuses_what_does_not_fit() {
    let spec = Spec { heads: 4, kv_heads: 2, head_dim: 3, scale: 1.0, softcap: None, window: None };
    let (q, k) = (zeros(&[5, 12]), zeros(&[5, 6]));
    let run = |q: &Tensor, k: &Tensor, v: &Tensor, b: &[u32], spec: Spec| {
        attention::forward(q, k, v, all(b), &spec)
    };
    let (y, saved) = run(&q, &k, &k, &[0, 2, 5], spec).unwrap();
    let backward =
        |y: &Tensor, dy: &Tensor, b: &[u32]| attention::backward((&q, &k, &k), y, &saved, dy, all(b), &spec);
    assert!(backward(&y, &y, &[0, 2, 5]).is_ok());
    let (_, other) = run(&zeros(&[3, 12]), &zeros(&[3, 6]), &zeros(&[3, 6]), &[0, 3], spec).unwrap();
    refuse! {
        "q too narrow" => run(&zeros(&[5, 9]), &k, &k, &[0, 5], spec),
        "q flat" => run(&zeros(&[60]), &k, &k, &[0, 5], spec),
        "q strided" => run(&zeros(&[12, 5]).t().unwrap(), &k, &k, &[0, 5], spec),
        "k too short" => run(&q, &zeros(&[4, 6]), &k, &[0, 5], spec),
        "k as wide as q" => run(&q, &q, &k, &[0, 5], spec),
        "v too long" => run(&q, &k, &zeros(&[6, 6]), &[0, 5], spec),
        "v of another dtype" => run(&q, &k, &k.to_dtype(DType::F64).unwrap(), &[0, 5], spec),
        "no boundaries" => run(&q, &k, &k, &[], spec),
        "a boundary beyond the end" => run(&q, &k, &k, &[0, 6], spec),
        "boundaries end early" => run(&q, &k, &k, &[0, 4], spec),
        "boundaries start late" => run(&q, &k, &k, &[1, 5], spec),
        "boundaries go back" => run(&q, &k, &k, &[0, 4, 3, 5], spec),
        "heads do not group" => run(&q, &zeros(&[5, 9]), &zeros(&[5, 9]), &[0, 5], Spec { kv_heads: 3, ..spec }),
        "no key-value heads" => run(&q, &zeros(&[5, 0]), &zeros(&[5, 0]), &[0, 5], Spec { kv_heads: 0, ..spec }),
        "a window of 0" => run(&q, &k, &k, &[0, 5], Spec { window: Some(0), ..spec }),
        "backward: output too short" => backward(&zeros(&[4, 12]), &y, &[0, 5]),
        "backward: dy too short" => backward(&y, &zeros(&[4, 12]), &[0, 5]),
        "backward: dy too narrow" => backward(&y, &zeros(&[5, 11]), &[0, 5]),
        "backward: dy too wide" => backward(&y, &zeros(&[5, 13]), &[0, 5]),
        "backward: boundaries" => backward(&y, &y, &[0, 4]),
        "backward: another run's state" =>
            attention::backward((&q, &k, &k), &y, &other, &y, all(&[0, 5]), &spec),
        "a query beyond the end" =>
            attention::forward(&q, &k, &k, Rows { boundaries: &[0, 5], queries: Some(&[0, 1, 2, 3, 5]) }, &spec),
        "queries that go back" =>
            attention::forward(&q, &k, &k, Rows { boundaries: &[0, 5], queries: Some(&[0, 2, 1, 3, 4]) }, &spec),
        "more queries than rows of q" =>
            attention::forward(&q, &k, &k, Rows { boundaries: &[0, 5], queries: Some(&[0, 1]) }, &spec),
    }
}

// KL

struct KlCase {
    option_boundaries: Vec<u32>,
    ids: Vec<u32>,
    probs: Vec<f32>,
    weights: Vec<f32>,
    whole_vocabulary: Vec<bool>,
}

impl KlCase {
    /// Rows over the vocabulary and over their options, some one-hot, with options of probability 0.
    fn random(s: &mut Stream, m: usize, vocabulary: usize) -> Self {
        let mut case = Self {
            option_boundaries: vec![0],
            ids: Vec::new(),
            probs: Vec::new(),
            weights: (0..m).map(|_| 0.1 + 2.0 * s.uniform() as f32).collect(),
            whole_vocabulary: (0..m).map(|_| s.below(2) == 0).collect(),
        };
        for _ in 0..m {
            let mut ids: Vec<u32> = (0..vocabulary as u32).collect();
            s.shuffle(&mut ids);
            ids.truncate(between(s, 1, 6.min(vocabulary)));
            let mut probs: Vec<f64> = ids.iter().map(|_| s.uniform()).collect();
            match s.below(4) {
                0 => probs.iter_mut().enumerate().for_each(|(i, p)| *p = f64::from(u8::from(i == 0))),
                1 => probs[0] = if probs.len() > 1 { 0.0 } else { 1.0 },
                _ => {}
            }
            let total: f64 = probs.iter().sum();
            case.ids.extend(ids);
            case.probs.extend(probs.into_iter().map(|p| (p / total) as f32));
            case.option_boundaries.push(case.ids.len() as u32);
        }
        case
    }

    fn targets(&self) -> Targets<'_> {
        Targets {
            option_boundaries: &self.option_boundaries,
            ids: &self.ids,
            probs: &self.probs,
            weights: &self.weights,
            whole_vocabulary: &self.whole_vocabulary,
        }
    }

    /// KL of each row and log-probabilities of the options, by loops.
    fn by_loops(&self, logits: &Tensor, cap: Option<f64>) -> (Vec<f64>, Vec<f64>) {
        let (mut kls, mut log_probs) = (Vec::new(), Vec::new());
        for (row, logits) in logits.to_vec2::<f64>().unwrap().into_iter().enumerate() {
            let logits: Vec<f64> =
                logits.into_iter().map(|l| cap.map_or(l, |c| c * (l / c).tanh())).collect();
            let options = self.option_boundaries[row] as usize..self.option_boundaries[row + 1] as usize;
            let chosen = |i: usize| logits[self.ids[i] as usize];
            let everything: f64 = logits.iter().map(|l| l.exp()).sum();
            let on_options: f64 = options.clone().map(|i| chosen(i).exp()).sum();
            let support = if self.whole_vocabulary[row] { everything } else { on_options };
            let mut kl = 0.0;
            for i in options {
                let t = f64::from(self.probs[i]);
                if t > 0.0 {
                    kl += t * (t / (chosen(i).exp() / support)).ln();
                }
                log_probs.push((chosen(i).exp() / everything).ln());
            }
            kls.push(kl);
        }
        (kls, log_probs)
    }
}

#[test]
fn kl() {
    for seed in 0..24 {
        let mut s = rng::stream(seed, "kl", 0);
        let (m, vocabulary) = (between(&mut s, 1, 40), between(&mut s, 2, 300));
        let cap = pick(&mut s, &[None, None, Some(1.5), Some(30.0)]);
        let case = KlCase::random(&mut s, m, vocabulary);
        let weigh =
            |rows: kl::Rows| rows.kl.iter().zip(&case.weights).map(|(kl, &w)| kl * f64::from(w)).sum::<f64>();
        let logits = (random(&mut s, &[m, vocabulary]) * 2.0).unwrap();
        check(
            &format!("kl {m} {vocabulary} {cap:?}"),
            std::slice::from_ref(&logits),
            |t| Ok(Tensor::new(weigh(kl::kl(&t[0], cap, case.targets(), false)?.0), &Device::Cpu)?),
            |t, dy| {
                let (_, grad) = kl::kl(&t[0], cap, case.targets(), true)?;
                Ok(vec![grad.unwrap().broadcast_mul(dy)?])
            },
            |t| kl::composed(&t[0], cap, case.targets()),
        );
        let (want_kl, want_log_probs) = case.by_loops(&logits, cap);
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 1e-5), (DType::BF16, 0.05)] {
            let logits = logits.to_dtype(dtype).unwrap();
            for want_grad in [false, true] {
                let (rows, grad) = kl::kl(&logits, cap, case.targets(), want_grad).unwrap();
                assert_eq!(grad.is_some(), want_grad);
                assert!(relative_max(&rows.kl, &want_kl, FLOOR) <= tolerance, "kl {seed} {dtype:?}");
                assert!(relative_max(&rows.option_log_probs, &want_log_probs, FLOOR) <= tolerance);
            }
            // Some rows alone give what they give among all.
            let (from, to) = (m / 3, m);
            let some = logits.narrow(0, from, to - from).unwrap();
            let (all, all_grad) = kl::kl(&logits, cap, case.targets(), true).unwrap();
            let (part, part_grad) = kl::kl(&some, cap, case.targets().slice(from..to), true).unwrap();
            assert_eq!(part.kl, all.kl[from..]);
            let rest = all_grad.unwrap().narrow(0, from, to - from).unwrap();
            assert_eq!(bits(&[part_grad.unwrap()]), bits(&[rest]));
        }
    }
}

#[test]
fn kl_of_a_distribution_to_itself_is_zero() {
    let logits = Tensor::new(&[[0f64, 0.25f64.ln(), 0.5f64.ln(), -3.0]], &Device::Cpu).unwrap();
    let total = 1.0 + 0.25 + 0.5;
    let targets = Targets {
        option_boundaries: &[0, 3],
        ids: &[1, 0, 2],
        probs: &[(0.25 / total) as f32, (1.0 / total) as f32, (0.5 / total) as f32],
        weights: &[1.0],
        whole_vocabulary: &[false],
    };
    let (rows, grad) = kl::kl(&logits, None, targets, true).unwrap();
    assert!(rows.kl[0].abs() < 1e-7 && values(&grad.unwrap()).iter().all(|g| g.abs() < 1e-7));
    // Over the vocabulary the mass that is off the options costs.
    let (rows, _) = kl::kl(&logits, None, Targets { whole_vocabulary: &[true], ..targets }, false).unwrap();
    let off = (-3f64).exp() / (total + (-3f64).exp());
    assert!((rows.kl[0] + (1.0 - off).ln()).abs() < 1e-7, "{:?}", rows.kl);
}

#[test]
fn kl_bears_extreme_logits() {
    for dtype in [DType::F64, DType::F32, DType::BF16] {
        for whole in [true, false] {
            let logits = Tensor::new(&[[0f32, -2_000.0, -3_000.0]], &Device::Cpu).unwrap();
            let logits = logits.to_dtype(dtype).unwrap();
            let run = |probs: [f32; 2]| {
                let targets = Targets {
                    option_boundaries: &[0, 2],
                    ids: &[0, 1],
                    probs: &probs,
                    weights: &[1.0],
                    whole_vocabulary: &[whole],
                };
                let (rows, grad) = kl::kl(&logits, None, targets, true).unwrap();
                (rows.kl[0], values(&grad.unwrap()))
            };
            assert_eq!(run([1.0, 0.0]), (0.0, vec![0.0, 0.0, 0.0]), "{dtype:?}");
            assert_eq!(run([0.0, 1.0]), (2_000.0, vec![1.0, -1.0, 0.0]), "{dtype:?}");
        }
    }
}

#[test]
fn kl_refuses_what_does_not_fit() {
    let logits = zeros(&[2, 7]);
    let good = Targets {
        option_boundaries: &[0, 2, 3],
        ids: &[0, 6, 3],
        probs: &[0.5, 0.5, 1.0],
        weights: &[1.0, 1.0],
        whole_vocabulary: &[true, false],
    };
    let run = |logits: &Tensor, targets| kl::kl(logits, None, targets, true);
    assert!(run(&logits, good).is_ok());
    refuse! {
        "too many rows" => run(&zeros(&[3, 7]), good),
        "too few rows" => run(&zeros(&[1, 7]), good),
        "logits flat" => run(&zeros(&[14]), good),
        "logits strided" => run(&zeros(&[7, 2]).t().unwrap(), good),
        "an id beyond the vocabulary" => run(&zeros(&[2, 6]), good),
        "too few ids" => run(&logits, Targets { ids: &[0, 6], ..good }),
        "too few probabilities" => run(&logits, Targets { probs: &[0.5, 0.5], ..good }),
        "too few option boundaries" => run(&logits, Targets { option_boundaries: &[0, 3], ..good }),
        "too many option boundaries" => run(&logits, Targets { option_boundaries: &[0, 1, 2, 3], ..good }),
        "no option boundaries" => run(&logits, Targets { option_boundaries: &[], ..good }),
        "option boundaries go back" => run(&logits, Targets { option_boundaries: &[0, 5, 3], ..good }),
        "too few supports" => run(&logits, Targets { whole_vocabulary: &[true], ..good }),
        "too many supports" => run(&logits, Targets { whole_vocabulary: &[true; 3], ..good }),
        "too few weights" => run(&logits, Targets { weights: &[1.0], ..good }),
    }
}

// Rows

#[test]
fn rows_move() {
    for seed in 0..8 {
        let mut s = rng::stream(seed, "rows", 0);
        let (n, m, width) = (between(&mut s, 1, 80), between(&mut s, 1, 120), between(&mut s, 1, 300));
        let index: Vec<u32> = (0..m).map(|_| s.below(n) as u32).collect();
        let x = random(&mut s, &[n, width]);
        let ids = Tensor::from_slice(&index, m, &Device::Cpu).unwrap();
        check(
            &format!("gather {n} {m} {width}"),
            std::slice::from_ref(&x),
            |t| rows::gather(&t[0], &index),
            |_, dy| Ok(vec![rows::scatter_add(dy, &index, n)?]),
            |t| Ok(t[0].index_select(&ids, 0)?),
        );
        check(
            &format!("scatter_add {n} {m} {width}"),
            &[random(&mut s, &[m, width])],
            |t| rows::scatter_add(&t[0], &index, n),
            |_, dy| Ok(vec![rows::gather(dy, &index)?]),
            |t| Ok(x.zeros_like()?.index_add(&ids, &t[0], 0)?),
        );
        check(
            &format!("add {n} {width}"),
            &[x.clone(), random(&mut s, &[n, width])],
            |t| rows::add(&t[0], &t[1]),
            |_, dy| Ok(vec![dy.clone(), dy.clone()]),
            |t| Ok((&t[0] + &t[1])?),
        );
    }
}

#[test]
fn no_rows_are_no_trouble() {
    let x = zeros(&[3, 5]);
    assert_eq!(rows::gather(&x, &[]).unwrap().dims(), [0, 5]);
    assert_eq!(values(&rows::scatter_add(&zeros(&[0, 5]), &[], 2).unwrap()), [0.0; 10]);
    assert_eq!(rms_norm::forward(&zeros(&[0, 5]), &zeros(&[5]), 1e-6, Gain::Weight).unwrap().dims(), [0, 5]);
}

#[test]
fn rows_refuse_what_does_not_fit() {
    let x = zeros(&[3, 5]);
    let half = x.to_dtype(DType::BF16).unwrap();
    refuse! {
        "gather: a row beyond the end" => rows::gather(&x, &[0, 3]),
        "scatter_add: a row beyond the end" => rows::scatter_add(&x, &[0, 1, 4], 4),
        "scatter_add: too few indices" => rows::scatter_add(&x, &[0, 1], 4),
        "scatter_add: too many indices" => rows::scatter_add(&x, &[0, 1, 2, 3], 4),
        "scatter_add: flat" => rows::scatter_add(&zeros(&[3]), &[0, 1, 2], 4),
        "scatter_add in half precision: a row beyond the end" => rows::scatter_add(&half, &[0, 1, 4], 4),
        "scatter_add in half precision: too few indices" => rows::scatter_add(&half, &[0, 1], 4),
        "add: another shape" => rows::add(&x, &zeros(&[5, 3])),
        "add: another dtype" => rows::add(&x, &x.to_dtype(DType::F64).unwrap()),
        "add: strided" => rows::add(&x, &strided()),
    }
}

// Determinism where the work is large enough to be shared out

#[test]
fn large_operations_do_not_depend_on_the_number_of_threads() {
    let mut s = rng::stream(0, "large", 0);
    let case = LinearCase { bias: true, lora: true, dropout: true };
    for (n, d_in, d_out, r) in [(300, 512, 700, 16), (1, 900, 1_100, 8), (37, 2_000, 130, 64)] {
        let inputs = cast(&case.inputs(&mut s, n, d_in, d_out, r), DType::F32);
        let dy = random(&mut s, &[n, d_out]).to_dtype(DType::F32).unwrap();
        same_on_any_threads("linear", || {
            Ok([vec![case.forward(&inputs)?], case.backward(&inputs, &dy)?].concat())
        });
    }
    for (softcap, window) in [(None, None), (Some(2.0), Some(100))] {
        let spec = Spec { heads: 8, kv_heads: 2, head_dim: 32, scale: 0.2, softcap, window };
        let boundaries = boundaries(&[500, 1, 231]);
        let inputs = cast(&qkv(&mut s, 732, &spec), DType::F32);
        let dy = random(&mut s, &[732, 256]).to_dtype(DType::F32).unwrap();
        same_on_any_threads("attention", || {
            let (y, _) = attention::forward(&inputs[0], &inputs[1], &inputs[2], all(&boundaries), &spec)?;
            Ok([vec![y], attention_backward(&inputs, &dy, all(&boundaries), &spec)?].concat())
        });
    }
    let wide = [300, 2_000];
    let [x, up, dy] = [0; 3].map(|_| random(&mut s, &wide).to_dtype(DType::F32).unwrap());
    let w = random(&mut s, &[2_000]).to_dtype(DType::F32).unwrap();
    let positions: Vec<u32> = (0..300).collect();
    let index: Vec<u32> = (0..300).map(|_| s.below(50) as u32).collect();
    let case = KlCase::random(&mut s, 300, 2_000);
    same_on_any_threads("rowwise", || {
        let (dx, dw) = rms_norm::backward(&x, &w, &dy, 1e-6, Gain::OnePlusWeight, true)?;
        let (gate_grad, up_grad) = glu::backward(&x, &up, &dy, Activation::GeluTanh)?;
        let (kl_rows, kl_grad) = kl::kl(&x, Some(30.0), case.targets(), true)?;
        Ok(vec![
            rms_norm::forward(&x, &w, 1e-6, Gain::OnePlusWeight)?,
            dx,
            dw.unwrap(),
            glu::forward(&x, &up, Activation::Silu)?,
            gate_grad,
            up_grad,
            rope::forward(&x, &angles(&positions, 50, DType::F32))?,
            rows::scatter_add(&x, &index, 50)?,
            rows::add(&x, &up)?,
            linear::bias_grad(&x)?,
            kl_grad.unwrap(),
            Tensor::new(kl_rows.kl, &Device::Cpu)?,
            Tensor::new(kl_rows.option_log_probs, &Device::Cpu)?,
        ])
    });
}
