//! Events: made by pure functions, published once.

use kube::runtime::events::{Event, EventType};

/// The API server refuses longer notes.
const NOTE_LIMIT: usize = 1024;

/// Something went as it should.
pub fn normal(reason: &str, note: &str) -> Event {
    event(EventType::Normal, reason, note)
}

/// Something that a person should look at.
pub fn warning(reason: &str, note: &str) -> Event {
    event(EventType::Warning, reason, note)
}

fn event(type_: EventType, reason: &str, note: &str) -> Event {
    let mut end = note.len().min(NOTE_LIMIT);
    while !note.is_char_boundary(end) {
        end -= 1;
    }
    Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note[..end].to_owned()),
        action: "Reconcile".into(),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_note_is_cut_on_a_character() {
        let note = normal("R", &"é".repeat(600)).note.unwrap();
        assert_eq!(note.len(), 1024);
    }
}
