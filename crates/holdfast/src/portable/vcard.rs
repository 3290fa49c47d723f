//! vCards: one record per top-level card, holding its exact source bytes.

use super::lines::{PlainText, Source, logical_lines};
use super::split::{CardDepth, CardLine, Object};
use super::{ContentId, IdSpace, ImportItem, calcard_entry, id_of_uid, raw_item, shown};
use calcard::Entry;

pub(super) const COLLECTION: &str = "contacts";
pub(super) const CONTENT_TYPE: &str = "text/vcard";

/// Makes the item for one card; `None` if an identical one was made before.
pub(super) fn import(source: Source<'_>, object: &Object, ids: &mut IdSpace) -> Option<ImportItem> {
    let payload = source.slice(&object.range);
    let uid = match check(source, object) {
        Ok(uid) => uid,
        Err(problem) => return Some(raw_item(payload, object.first_line, problem)),
    };
    let content = ContentId::of(payload);
    let base = uid.as_deref().and_then(id_of_uid).unwrap_or_else(|| content.record_id());
    let record_id = ids.claim(COLLECTION, &base, &content)?;
    Some(ImportItem {
        collection: COLLECTION,
        record_id,
        content_type: CONTENT_TYPE.to_owned(),
        payload: payload.to_vec(),
        line: object.first_line,
        problem: None,
    })
}

/// Checks that a card parses and returns its UID; the error says why not.
///
/// calcard runs in its tolerant mode: the strict one refuses nested cards and
/// some legitimate vCard 2.1. Text that is no property at all, which that mode
/// passes over in silence, is found by [`logical_lines`] instead.
pub(super) fn check(source: Source<'_>, card: &Object) -> Result<Option<String>, String> {
    if !card.terminated {
        return Err("BEGIN:VCARD has no END:VCARD".to_owned());
    }
    let mut depth = CardDepth::default();
    let mut properties = Vec::new();
    // Without the nested cards, so that the UID found is the card's own.
    let mut own_text = PlainText::default();
    let mut nested_text = PlainText::default();
    nested_text.push(b"BEGIN:VCARD");
    for (index, line) in source.lines(card.range.clone(), card.first_line).enumerate() {
        if index == 0 {
            own_text.push_line(&line);
            continue;
        }
        match depth.step(&line) {
            CardLine::Inside { nested } => {
                let text = if nested { &mut nested_text } else { &mut own_text };
                text.push_line(&line);
                properties.push(line);
            }
            CardLine::End => own_text.push_line(&line),
            CardLine::NestedDelimiter | CardLine::Foreign => {}
        }
    }
    for property in logical_lines(properties.into_iter()) {
        if !property.is_property() {
            return Err(format!(
                "line {} of the card is not a property (name:value): {}",
                property.number,
                shown(source.slice(&property.range))
            ));
        }
        if property.is_spoilt_delimiter() {
            return Err(format!(
                "line {} of the card is a BEGIN or END with more than its name: {}",
                property.number,
                shown(source.slice(&property.range))
            ));
        }
    }
    nested_text.push(b"END:VCARD");
    let Some(Entry::VCard(_)) = calcard_entry(&nested_text.into_string()) else {
        return Err("a card inside this card (AGENT) does not parse".to_owned());
    };
    match calcard_entry(&own_text.into_string()) {
        Some(Entry::VCard(parsed)) => Ok(parsed.uid().map(str::to_owned)),
        Some(_) => Err("the lines from BEGIN:VCARD to END:VCARD do not parse".to_owned()),
        None => Err("the vCard parser failed on this card".to_owned()),
    }
}
