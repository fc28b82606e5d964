//! A live dialogue with the exact teacher: the answers come one by one, from a person.

use anyhow::{Result, ensure};

use super::config::TeacherConfig;
use super::decision::{Decision, decide};
use super::evidence::{Evidence, Questions};
use super::posterior::Posterior;
use super::rival::{Kind, Rules};
use super::simulate::Dialogue;
use crate::episode::{Answer, Episode, FORMAT_VERSION, Message};
use crate::error::usage;
use crate::world::{Attribute, Question, World, attribute};

/// A person who waits for the next question gets it in a second or so: candidates times hypotheses are no more than this, but
/// for a few candidates in any case.
const MOST_CELLS: usize = 10_000_000;
const FEWEST_CANDIDATES: usize = 8;

/// What all sessions of a config have in common.
///
/// Whoever teaches in the config, here it is the exact teacher: an oracle would have to know the answers beforehand.
pub struct Sessions {
    config: TeacherConfig,
    world: World,
    rules: Rules,
    attributes: Vec<Attribute>,
}

impl Sessions {
    /// The sessions of a config's world, with questions chosen by `evidence`.
    ///
    /// # Errors
    /// A usage error if there is no exact teacher over a grid of hypotheses, or `evidence` means nothing in this world.
    pub fn new(config: &TeacherConfig, evidence: Evidence) -> Result<Sessions> {
        let mut exact = TeacherConfig {
            kind: Kind::Bayes,
            evidence,
            // One person, however many users the world has.
            users: Some(1),
            stop_gain: if evidence == Evidence::Random { 0.0 } else { config.stop_gain },
            ..config.clone()
        };
        let world = exact.build_world()?;
        ensure!(
            world.has_exact_teacher(),
            usage(format!(
                "the {} world has no exact teacher, so nobody here can say what answers tell",
                world.name()
            ))
        );
        exact.validate()?;
        let hypotheses = world.factors().iter().map(|factor| factor.prior.len()).max().unwrap_or(1);
        exact.candidates = exact.candidates.min((MOST_CELLS / hypotheses).max(FEWEST_CANDIDATES));
        Ok(Sessions {
            rules: Rules::new(&exact, &world),
            attributes: world.attributes(),
            config: exact,
            world,
        })
    }

    /// The world.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Among how many drawn option sets the most telling is chosen: as many as configured, or fewer where there are so many
    /// hypotheses that the person would wait long.
    pub fn candidates(&self) -> usize {
        self.config.candidates
    }

    /// What can be said of a user in one word and a level.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// How many questions a session has at most.
    pub fn rounds(&self) -> usize {
        self.config.rounds_in(&self.world)
    }

    /// A session before its first answer. What is drawn is a function of the seed; so the same answers lead to the same
    /// questions.
    pub fn begin(&self, seed: u64) -> Session<'_> {
        let interview = self.interview();
        let mut questions = Questions::new(&self.config, &self.world, seed, 0);
        let question = questions.next(&interview.posterior);
        Session { interview, questions, question }
    }

    /// A dialogue without a plan of what is asked.
    pub fn interview(&self) -> Interview<'_> {
        Interview {
            world: &self.world,
            rules: &self.rules,
            decision: self.config.decision,
            posterior: self.rules.prior(),
            dialogue: Dialogue::new(&self.world),
            asked: Vec::new(),
        }
    }
}

/// A dialogue in which anything may be asked.
#[derive(Clone)]
pub struct Interview<'a> {
    world: &'a World,
    rules: &'a Rules,
    decision: Decision,
    posterior: Posterior,
    dialogue: Dialogue<'a>,
    asked: Vec<Question>,
}

impl Interview<'_> {
    /// What the teacher believes.
    pub fn posterior(&self) -> &Posterior {
        &self.posterior
    }

    /// What the teacher would believe after these answers too, without a word being said.
    pub fn believing<'q>(&self, answers: impl IntoIterator<Item = (&'q Question, usize)>) -> Posterior {
        let mut posterior = self.posterior.clone();
        for (question, answer) in answers {
            self.rules.observe(&mut posterior, question, answer);
        }
        posterior
    }

    /// The questions that were answered.
    pub fn asked(&self) -> &[Question] {
        &self.asked
    }

    /// The probability that the teacher gives to each level of an attribute.
    pub fn belief(&self, attribute: &Attribute) -> Vec<f64> {
        let mut levels = vec![0.0; attribute.levels];
        let marginal = self.posterior.marginal(attribute.factor);
        for (level, p) in attribute.level_of.iter().zip(marginal) {
            levels[usize::from(*level)] += p;
        }
        levels
    }

    /// Takes in a question and what the user answers to it; false where no user of the world could have given that
    /// answer, which then teaches nothing.
    pub fn answer(&mut self, question: &Question, truth: usize) -> bool {
        let probs = self.posterior.predictive(question);
        let said = decide(self.decision, &self.posterior, question, &probs);
        let observations = self.posterior.observations(question.factor);
        let (content, start) = self.world.reply(question, said);
        self.dialogue.ask(question);
        self.dialogue.answer(content, answer(question, start, probs, said, Some(truth), Some(observations)));
        self.dialogue.tell(question, said, truth);
        let ignored = self.posterior.ignored();
        self.rules.observe(&mut self.posterior, question, truth);
        self.asked.push(question.clone());
        self.posterior.ignored() == ignored
    }

    /// The dialogue as it would go on with a question of the world. The assistant's message that answers it says the
    /// first option, and is the only one with an answer: for models, which are asked what they would say instead.
    pub fn asking(&self, question: &Question) -> Vec<Message> {
        self.preview(question, self.world.reply(question, 0))
    }

    /// The same with the question for a belief.
    pub fn asking_belief(&self, attribute: &Attribute) -> Vec<Message> {
        let question = attribute.question();
        let reply = attribute::report(&question.labels[0]);
        self.preview(&question, reply)
    }

    fn preview(&self, question: &Question, (content, start): (String, usize)) -> Vec<Message> {
        let mut dialogue = self.dialogue.clone();
        dialogue.messages.iter_mut().for_each(|message| message.answer = None);
        let n = question.labels.len();
        dialogue.ask(question);
        dialogue.answer(content, answer(question, start, vec![1.0 / n as f64; n], 0, None, None));
        dialogue.messages
    }

    /// The dialogue so far as an episode of a person: the teacher's predictions with what the person answered.
    /// None before the first answer.
    pub fn episode(&self, id: &str, user: &str) -> Option<Episode> {
        (!self.asked.is_empty()).then(|| Episode {
            format_version: FORMAT_VERSION,
            id: id.to_owned(),
            world: self.world.name().to_owned(),
            user: user.to_owned(),
            messages: self.dialogue.messages.clone(),
        })
    }
}

fn answer(
    question: &Question,
    start: usize,
    probs: Vec<f64>,
    said: usize,
    truth: Option<usize>,
    observations: Option<usize>,
) -> Answer {
    Answer {
        start,
        options: question.labels.to_vec(),
        probs,
        predictive: None,
        said,
        truth,
        weight: 1.0,
        observations,
        belief: None,
    }
}

/// A dialogue in which the teacher chooses what is asked.
///
/// ```
/// use bayesteach::teacher::{Evidence, Sessions, TeacherConfig, WorldName};
///
/// # fn main() -> anyhow::Result<()> {
/// let sessions = Sessions::new(&TeacherConfig::new(WorldName::Personality), Evidence::Eig)?;
/// let mut session = sessions.begin(1);
/// let before = session.interview().posterior().entropy();
/// session.answer(4)?;
/// assert!(session.interview().posterior().entropy() < before);
/// # Ok(())
/// # }
/// ```
pub struct Session<'a> {
    interview: Interview<'a>,
    questions: Questions<'a>,
    question: Option<Question>,
}

impl<'a> Session<'a> {
    /// The question that waits for an answer; none where the session is over.
    pub fn question(&self) -> Option<&Question> {
        self.question.as_ref()
    }

    /// The dialogue so far.
    pub fn interview(&self) -> &Interview<'a> {
        &self.interview
    }

    /// Takes in the answer to the question that waits, as the index of an option; false as in [`Interview::answer`].
    ///
    /// # Errors
    /// If no question waits, or it has no such option.
    pub fn answer(&mut self, option: usize) -> Result<bool> {
        let Some(question) = self.question.take() else {
            return Err(usage("the session is over: no question waits for an answer"));
        };
        let options = question.labels.len();
        if option >= options {
            self.question = Some(question);
            return Err(usage(format!("option {option} (from 0), but the question has {options}")));
        }
        let possible = self.interview.answer(&question, option);
        self.question = self.questions.next(&self.interview.posterior);
        Ok(possible)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::teacher::{WorldName, simulate};

    /// The session of a user's answers is the episode that the teacher writes about this user.
    #[test]
    fn a_session_is_an_episode() {
        for world in [WorldName::Flights, WorldName::Personality, WorldName::TraitFlights] {
            for evidence in [Evidence::Random, Evidence::Eig] {
                let config = TeacherConfig {
                    evidence,
                    candidates: 20,
                    rounds: Some(4),
                    ..TeacherConfig::new(world.clone())
                };
                let sessions = Sessions::new(&config, evidence).unwrap();
                // The draws of questions are keyed by user and episode; a session is that of user 0.
                let built = config.build_world().unwrap();
                let told = simulate(&config, &built, 5, 0, 0, |_| {});
                let mut session = sessions.begin(5);
                for (answer, _) in told.episode.answers() {
                    session.answer(answer.truth.unwrap()).unwrap();
                }
                assert!(session.question().is_none());
                let episode = session.interview().episode(&told.episode.id, &told.episode.user).unwrap();
                assert_eq!(episode, told.episode);
                assert!(session.answer(0).is_err());
            }
        }
    }

    #[test]
    fn previews_leave_the_dialogue_alone() {
        let sessions = Sessions::new(&TeacherConfig::new(WorldName::Flights), Evidence::Random).unwrap();
        let mut session = sessions.begin(1);
        assert!(session.interview().episode("a", "b").is_none());
        assert!(session.answer(3).is_err());
        session.answer(1).unwrap();
        let question = session.question().unwrap().clone();
        let asking = session.interview().asking(&question);
        assert_eq!(asking.len(), 4);
        assert!(asking[1].answer.is_none() && asking[3].content == "The best option is Flight 1.");
        assert!(asking[2].content.ends_with(question.text.trim_end()));
        let believed = session.interview().believing([(&question, 2)]);
        let mut said = session.interview().clone();
        said.answer(&question, 2);
        assert_eq!(believed.marginal(0), said.posterior().marginal(0));
        let belief = &sessions.attributes()[3];
        let asking = session.interview().asking_belief(belief);
        assert!(asking[2].content.contains("price") && asking[3].content == "1");
        let beliefs = session.interview().belief(belief);
        assert!((beliefs.iter().sum::<f64>() - 1.0).abs() < 1e-12 && beliefs.len() == 5);
        assert_eq!(session.interview().episode("a", "b").unwrap().messages.len(), 2);
    }

    #[test]
    fn worlds_without_an_exact_grid_are_refused() {
        for (world, part) in [(WorldName::Coins, "drawn sources"), (WorldName::Shop, "no exact teacher")] {
            let error = Sessions::new(&TeacherConfig::new(world), Evidence::Eig).err().unwrap();
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
