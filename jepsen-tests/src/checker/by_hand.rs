//! Histories by hand, line by line, for what no simulation comes upon.

use crate::history::Op;

/// A history of these lines; times are places.
pub(crate) fn by_hand(lines: &[String]) -> Vec<Op> {
    let lines = lines.iter().enumerate().map(|(place, line)| {
        let line = line.replace("TIME", &((place as u64 + 1) * 1_000_000).to_string());
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    lines.collect()
}

/// A write of client 1 that took effect.
pub(crate) fn written(key: &str, content: &str, version: u64, index: u64) -> [String; 2] {
    let asked = format!(r#""user":"u","request_id":"{content}","changes":[{{"key":"{key}","put":"{content}"}}]"#);
    let version = (1 << 48) + version;
    let at = format!(r#"{{"incarnation":7,"group":0,"index":{index}}}"#);
    let done = format!(
        r#""done":{{"at":{at},"version":{version},"replayed":false,"results":[{{"changed":true,"version":{version}}}],"node":1}}"#
    );
    [
        format!(r#"{{"process":1,"type":"invoke","time_ns":TIME,"f":"batch","value":{{{asked}}}}}"#),
        format!(r#"{{"process":1,"type":"ok","time_ns":TIME,"f":"batch","value":{{{asked},{done}}}}}"#),
    ]
}

/// A write of client 1 of which nobody knows.
pub(crate) fn lost(key: &str, content: &str) -> [String; 2] {
    let [asked, _] = written(key, content, 0, 0);
    let error = r#""error":{"reason":"OUTCOME_UNKNOWN","message":"m"}"#;
    let ended = asked.replace("invoke", "info");
    let ended = format!("{},{error}}}", &ended[..ended.len() - 1]);
    [asked, ended]
}

/// A delete of client 1 that found a tombstone of this version, at this index; `None` = nobody knows what became of it.
pub(crate) fn delete(id: &str, key: &str, found: Option<(u64, u64)>) -> [String; 2] {
    let asked = format!(r#""user":"u","request_id":"{id}","changes":[{{"key":"{key}"}}]"#);
    let line = |stage: &str, value: &str, end: &str| {
        format!(r#"{{"process":1,"type":"{stage}","time_ns":TIME,"f":"batch","value":{{{asked}{value}}}{end}}}"#)
    };
    let ended = match found {
        None => line("info", "", r#","error":{"reason":"OUTCOME_UNKNOWN","message":"m"}"#),
        Some((version, index)) => {
            let (version, head) = ((1u64 << 48) + version, (1u64 << 48) + version + 1);
            let at = format!(r#"{{"incarnation":7,"group":0,"index":{index}}}"#);
            let result = format!(r#"[{{"changed":false,"version":{version}}}]"#);
            let done =
                format!(r#","done":{{"at":{at},"version":{head},"replayed":false,"results":{result},"node":1}}"#);
            line("ok", &done, "")
        }
    };
    [line("invoke", "", ""), ended]
}
