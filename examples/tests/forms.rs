//! A real client and a real server over every form of messages.

use std::time::Duration;

use driftline_client::{Client, Edit, Form, KindName, RecordId, Replica, fields};
use driftline_examples::server::Embedded;
use driftline_testkit::TempFolder;

const WITHIN: Duration = Duration::from_secs(20);

/// Ten fields with everything that JSON and MessagePack write differently, and longer than what is compressed.
fn body(form: usize) -> String {
    format!(
        r#"{{"form":{form},"half":0.5,"large":9007199254740991,"list":[1,"two",null,{{"deep":[]}}],"long":"{}","negative":-129,"no":null,"text":"é \"😀\"\n","yes":true,"zero":0}}"#,
        "words and more words ".repeat(20)
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn devices_of_every_form_show_the_same() {
    let data = TempFolder::new();
    let server = Embedded::start(data.path()).await.expect("a server");
    let kind = KindName::new("note").expect("a kind");
    let mut clients = Vec::new();
    for (at, form) in Form::ALL.into_iter().enumerate() {
        let endpoint = server.endpoint("acme", "ada", &format!("phone-{at}")).expect("an endpoint");
        let to = endpoint.with_forms([form]);
        let mut client = Client::connect(&to, Replica::default()).await.expect("a connection");
        assert_eq!(client.form(), form, "the one that was offered");
        let id = RecordId::new(&format!("of-{at}")).expect("an id");
        let create = Edit::create(kind.clone(), id, fields(&body(at)).expect("fields"));
        client.edit(create).expect("room");
        client.sync(WITHIN).await.expect("in time");
        clients.push(client);
    }
    // Each changes one field of the record of the one before, and all of them hear of it.
    for (at, client) in clients.iter_mut().enumerate() {
        client.sync(WITHIN).await.expect("in time");
        let id = RecordId::new(&format!("of-{}", (at + 3) % 4)).expect("an id");
        let patch = Edit::patch(kind.clone(), id, fields(r#"{"yes":false}"#).expect("fields"));
        client.edit(patch).expect("room");
        client.sync(WITHIN).await.expect("in time");
    }
    for mut client in clients {
        client.sync(WITHIN).await.expect("in time");
        let form = client.form();
        for at in 0..4 {
            let shown = client.replica().view("note", &format!("of-{at}")).expect("the record");
            assert_eq!(
                shown.fields.as_str(),
                body(at).replace(r#""yes":true"#, r#""yes":false"#),
                "{form:?}"
            );
        }
        assert!(client.close().await.dead_letters().is_empty(), "{form:?}");
    }
    server.stop().await.expect("a clean stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_takes_the_first_form_that_it_is_offered() {
    let data = TempFolder::new();
    let server = Embedded::start(data.path()).await.expect("a server");
    let endpoint = server.endpoint("acme", "ada", "phone").expect("an endpoint");
    let [json, .., packed] = Form::ALL;
    for (offered, chosen) in [
        (endpoint.clone(), packed),
        (endpoint.clone().with_forms([json, packed]), json),
        (endpoint.with_forms([]), json),
    ] {
        let client = Client::connect(&offered, Replica::default()).await.expect("a connection");
        assert_eq!(client.form(), chosen, "{:?}", offered.forms());
        client.close().await;
    }
    server.stop().await.expect("a clean stop");
}
