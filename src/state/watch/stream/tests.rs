//! Lists and watches against a scripted API server: what is requested, and which events follow.

use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::k8s::object::NodeObject;

fn node(name: &str, version: &str) -> Value {
    json!({ "metadata": { "name": name, "resourceVersion": version } })
}

fn page(names: &[&str], version: &str, next: &str) -> (u16, String) {
    let items: Vec<Value> = names.iter().map(|name| node(name, "1")).collect();
    (200, json!({ "metadata": { "resourceVersion": version, "continue": next }, "items": items }).to_string())
}

fn events(events: &[(&str, Value)]) -> (u16, String) {
    (200, events.iter().map(|(kind, object)| json!({ "type": kind, "object": object }).to_string() + "\n").collect())
}

/// Follows nodes until the script ends. Returns the queries of the requests, and the events.
async fn follow(script: Vec<(u16, String)>) -> (Vec<String>, Vec<String>) {
    follow_with(script, |_| {}).await
}

/// As [`follow`], with a source that is changed.
async fn follow_with(script: Vec<(u16, String)>, change: fn(&mut Source)) -> (Vec<String>, Vec<String>) {
    let script = Arc::new(Mutex::new(script.into_iter()));
    let (asked, told) = (Arc::new(Mutex::new(Vec::new())), Mutex::new(Vec::new()));
    let done = Arc::new(Notify::new());
    let service = {
        let (asked, done) = (asked.clone(), done.clone());
        tower::service_fn(move |request: hyper::Request<Body>| {
            let answer = script.lock().next();
            if answer.is_some() {
                asked.lock().push(request.uri().query().unwrap_or_default().to_owned());
            } else {
                done.notify_one();
            }
            async move {
                let Some((status, body)) = answer else { return std::future::pending().await };
                let body = http_body_util::Full::new(hyper::body::Bytes::from(body));
                Ok::<_, std::io::Error>(hyper::Response::builder().status(status).body(body).unwrap())
            }
        })
    };
    let mut source = Source::new(Client::new(service, "default"), "");
    change(&mut source);
    let tell = |event: Event<NodeObject>| {
        let text = match event {
            Event::ListBegins => "list".to_owned(),
            Event::Listed(node) => format!("listed {}", node.name()),
            Event::ListEnds => "whole".to_owned(),
            Event::Applied(node) => format!("applied {}", node.name()),
            Event::Deleted(node) => format!("deleted {}", node.name()),
            Event::Heard => return,
        };
        told.lock().push(text);
    };
    tokio::select! {
        () = source.follow(tell) => {}
        () = done.notified() => {}
    }
    let asked = asked.lock().clone();
    (asked, told.into_inner())
}

fn has(query: &str, parameter: &str) -> bool {
    query.split('&').any(|found| found == parameter)
}

#[tokio::test]
async fn a_list_goes_on_page_by_page_and_the_watch_from_its_version() {
    let script = vec![
        page(&["a", "b"], "7", "more"),
        page(&["c"], "7", ""),
        events(&[("ADDED", node("d", "8")), ("DELETED", node("a", "9"))]),
        events(&[("BOOKMARK", node("", "12"))]),
        events(&[]),
    ];
    let (asked, told) = follow(script).await;
    assert_eq!(told, ["list", "listed a", "listed b", "listed c", "whole", "applied d", "deleted a"]);
    assert!(has(&asked[0], "limit=500") && !asked[0].contains("continue"), "{}", asked[0]);
    assert!(has(&asked[1], "continue=more"), "{}", asked[1]);
    for (query, version) in asked[2..].iter().zip(["7", "9", "12"]) {
        assert!(has(query, "watch=true") && has(query, "timeoutSeconds=60"), "{query}");
        assert!(has(query, &format!("resourceVersion={version}")) && has(query, "allowWatchBookmarks=true"), "{query}");
    }
}

#[tokio::test]
async fn what_an_api_server_no_longer_has_is_listed_anew() {
    let gone = json!({ "kind": "Status", "code": 410, "message": "too old resource version" });
    let script = vec![
        page(&["a"], "7", ""),
        events(&[("ERROR", gone.clone())]),
        page(&["a"], "20", ""),
        (410, gone.to_string()),
        page(&["b"], "30", "more"),
        (410, gone.to_string()),
        page(&["b"], "40", ""),
    ];
    let (_, told) = follow(script).await;
    let lists =
        ["list", "listed a", "whole", "list", "listed a", "whole", "list", "listed b", "list", "listed b", "whole"];
    assert_eq!(told, lists);
}

#[tokio::test]
async fn a_watch_that_fails_goes_on_from_what_it_saw() {
    let script = vec![
        page(&[], "7", ""),
        (200, json!({ "type": "ADDED", "object": node("a", "8") }).to_string() + "\n{\"type\":\"ADDED\",\"obj"),
        (503, "upstream connect error".into()),
        events(&[("MODIFIED", node("a", "9"))]),
    ];
    let (asked, told) = follow(script).await;
    assert_eq!(told, ["list", "whole", "applied a", "applied a"]);
    assert!(
        asked[1..]
            .iter()
            .zip(["7", "8", "8"])
            .all(|(query, version)| has(query, &format!("resourceVersion={version}")))
    );
}

#[tokio::test]
async fn a_kind_that_was_never_served_has_no_objects_and_one_that_was_keeps_them() {
    let optional = |source: &mut Source| {
        source.optional = true;
        source.watch = Duration::from_millis(60);
    };
    let not_served = || (404, json!({ "kind": "Status", "code": 404 }).to_string());
    let (_, told) = follow_with(vec![not_served(), page(&["a"], "7", "")], optional).await;
    assert_eq!(told, ["list", "list", "whole", "list", "listed a", "whole"], "none, until the definition is there");
    let script = vec![page(&["a"], "7", ""), not_served(), events(&[("ADDED", node("b", "8"))]), not_served()];
    let (_, told) = follow_with(script, optional).await;
    assert_eq!(told, ["list", "listed a", "whole", "applied b"]);
    let (_, told) = follow_with(vec![not_served(), page(&["a"], "7", "")], |_| {}).await;
    assert_eq!(told, ["list", "list", "listed a", "whole"], "a kind that must be there is not empty without it");
}

/// An object that a broken list does not name must not count as deleted.
#[tokio::test]
async fn a_list_that_breaks_off_is_never_whole() {
    let (status, body) = page(&["a", "b"], "7", "");
    let script = vec![(status, body[..body.len() - 5].to_owned()), (500, "{}".into()), page(&["a"], "8", "")];
    let (asked, told) = follow(script).await;
    assert_eq!(told.iter().filter(|event| *event == "whole").count(), 1);
    assert_eq!(told.last().unwrap(), "whole");
    assert_eq!(asked.len(), 3);
}
