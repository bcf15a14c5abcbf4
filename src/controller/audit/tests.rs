use super::*;

#[test]
fn objects_that_cannot_be_read_are_one_gap() {
    let mut unread = Unread::default();
    assert_eq!(std::mem::take(&mut unread).gap(), None);
    unread.note(&format!("Pod ml/odd: {}", "x".repeat(10_000)));
    unread.note("Pod ml/other: spec: is missing");
    let gap = unread.gap().expect("a gap");
    assert!(gap.why.starts_with("2 objects could not be read, the first: Pod ml/odd: x"), "{}", gap.why);
    assert!(gap.why.ends_with("; they are not counted") && gap.why.len() < 600, "{}", gap.why);
}

#[tokio::test]
async fn an_audit_that_does_not_end_fails_at_its_deadline() {
    let limit = Duration::from_millis(10);
    let error =
        within(limit, "reading", std::future::pending::<anyhow::Result<()>>()).await.expect_err("it does not end");
    assert_eq!(error.to_string(), "reading did not end within 0 s");
}

#[tokio::test]
async fn an_audit_waits_for_the_memory_of_the_one_before() {
    let (controller, asked) = crate::controller::tests::controller();
    let before = ONE.acquire().await.expect("it is never closed");
    let second = look(&controller, false);
    tokio::pin!(second);
    assert!(tokio::time::timeout(Duration::from_millis(100), &mut second).await.is_err(), "it waits");
    assert_eq!(asked.count(&axum::http::Method::GET, "/nodes"), 0, "and reads nothing meanwhile");
    drop(before);
    _ = tokio::time::timeout(Duration::from_secs(8), second).await;
    assert!(asked.count(&axum::http::Method::GET, "/nodes") > 0);
}
