// A real OpenID Connect provider for tests: `oidc-provider`, whose own forms let people sign in by their name alone.
//
// The first line of stdout is the issuer. The first line of stdin is a JSON object with the addresses of the client,
// `redirectUri` and `afterSignOut`; each later one is an object of claims by account, which apply from then on.
// Each line is answered by the line `ready`.
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';

import Provider from 'oidc-provider';

console.info = console.error; // its notices do not belong into the answers
const server = createServer();
let accounts = {};
let provider;

function start({ redirectUri, afterSignOut }) {
  provider = new Provider(`http://127.0.0.1:${server.address().port}`, {
    clients: [
      {
        client_id: 'signoff',
        client_secret: 'a secret of the client: %&',
        redirect_uris: [redirectUri],
        post_logout_redirect_uris: [afterSignOut],
        response_types: ['code'],
        grant_types: ['authorization_code'],
      },
    ],
    claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
    scopes: ['openid', 'email', 'groups'],
    cookies: { keys: ['a key of cookies'] },
    pkce: { required: () => true },
    findAccount: (_, id) => ({ accountId: id, claims: () => ({ sub: id, ...accounts[id] }) }),
  });
  server.on('request', provider.callback());
}

server.listen(0, '127.0.0.1', () => {
  console.log(`http://127.0.0.1:${server.address().port}`);
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      if (provider) accounts = JSON.parse(line);
      else start(JSON.parse(line));
      console.log('ready');
    })
    .on('close', () => process.exit());
});
