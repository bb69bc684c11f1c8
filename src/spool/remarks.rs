//! Why copies wait, in words: told by those who tried them, kept in memory only, and forgotten at a restart.
//!
//! A million copies wait for a handful of reasons, so equal words are kept once and a copy has no more than their number,
//! for which its entry has room. Hosts that put something different in each answer (a queue number, the recipient) must
//! not fill the memory: where there is no room for another text, a shorter one does, which many copies have in common.

use crate::random::HashMap;
use std::sync::Arc;

/// Texts that are kept: with [`LONGEST`] some three megabytes.
const TEXTS: usize = 4096;

/// So many of them are left to the shorter ones.
const RESERVED: usize = 512;

/// Bytes of one text: room for five hosts and what each said. The tracking files have all of it.
const LONGEST: usize = 700;

/// The number of a text; zero is none. Whoever is done with it gives it back with [`Remarks::release`].
pub type Number = u16;

/// The texts, and how many copies have each.
#[derive(Debug, Default)]
pub struct Remarks {
    texts: Vec<Option<(Arc<str>, u32)>>,
    numbers: HashMap<Arc<str>, Number>,
    /// Places in `texts` that nobody has.
    free: Vec<Number>,
}

impl Remarks {
    /// The number of these words, or of the shorter ones where there is no room for more.
    pub fn take(&mut self, words: &str, short: &str) -> Number {
        match self.find(words, TEXTS - RESERVED) {
            0 => self.find(short, TEXTS),
            number => number,
        }
    }

    fn find(&mut self, words: &str, room: usize) -> Number {
        let words = cut(words);
        if let Some(&number) = self.numbers.get(&*words) {
            if let Some((_, copies)) = self.texts[usize::from(number - 1)].as_mut() {
                *copies += 1;
            }
            return number;
        }
        if self.numbers.len() >= room {
            return 0;
        }
        let text: Arc<str> = words.into();
        let kept = Some((Arc::clone(&text), 1));
        let number = match self.free.pop() {
            Some(number) => {
                self.texts[usize::from(number - 1)] = kept;
                number
            }
            None => {
                self.texts.push(kept);
                self.texts.len() as Number
            }
        };
        self.numbers.insert(text, number);
        number
    }

    /// One copy less has it.
    pub fn release(&mut self, number: Number) {
        let Some(place) = usize::from(number).checked_sub(1).and_then(|place| self.texts.get_mut(place)) else {
            return;
        };
        if let Some((text, copies)) = place {
            *copies -= 1;
            if *copies == 0 {
                self.numbers.remove(text);
                *place = None;
                self.free.push(number);
            }
        }
    }

    /// The words.
    pub fn get(&self, number: Number) -> Option<Arc<str>> {
        let place = usize::from(number).checked_sub(1)?;
        self.texts.get(place)?.as_ref().map(|(text, _)| Arc::clone(text))
    }
}

fn cut(words: &str) -> String {
    if words.len() <= LONGEST {
        return words.to_owned();
    }
    format!("{}…", &words[..words.floor_char_boundary(LONGEST)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_words_are_kept_once_and_as_long_as_somebody_has_them() {
        let mut remarks = Remarks::default();
        let (one, same, other) = (remarks.take("busy", ""), remarks.take("busy", ""), remarks.take("full", ""));
        assert_eq!((one, other), (same, 2));
        remarks.release(one);
        assert_eq!(remarks.get(same).as_deref(), Some("busy"));
        remarks.release(same);
        assert_eq!((remarks.get(same), remarks.numbers.len()), (None, 1));
        assert_eq!(remarks.take("asleep", ""), same, "its place is another's");
        assert_eq!((remarks.get(0), remarks.get(99)), (None, None));
        remarks.release(0);
    }

    #[test]
    fn where_each_answer_is_another_the_short_ones_do() {
        let mut remarks = Remarks::default();
        let numbers: Vec<Number> =
            (0..10_000).map(|number| remarks.take(&format!("451 see {number}"), "451")).collect();
        assert_eq!(remarks.texts.len(), TEXTS - RESERVED + 1);
        assert_eq!(remarks.get(numbers[0]).as_deref(), Some("451 see 0"));
        assert_eq!(remarks.get(numbers[9_999]).as_deref(), Some("451"));
        for number in 0..10_000 {
            remarks.take(&format!("450 see {number}"), &format!("450 by {number}"));
        }
        assert_eq!((remarks.texts.len(), remarks.take("new", "new")), (TEXTS, 0), "then nothing is said");
        numbers.into_iter().for_each(|number| remarks.release(number));
        assert_eq!(remarks.numbers.len(), RESERVED - 1);
        let long = remarks.take(&"é".repeat(LONGEST), "");
        assert!(remarks.get(long).is_some_and(|text| text.len() <= LONGEST + '…'.len_utf8()));
    }
}
