// The peer `ws` on Node: the loop over the clients that its documentation shows. Arguments: PORT SOCKET.

const net = require('node:net');
const readline = require('node:readline');
const { WebSocket, WebSocketServer } = require('ws');

const [port, socket] = process.argv.slice(2);
const watchers = new Map();

function broadcast(topic, text) {
  for (const client of watchers.get(topic) ?? []) {
    if (client.readyState === WebSocket.OPEN) client.send(text);
  }
}

new WebSocketServer({ host: '127.0.0.1', port: Number(port) }).on('connection', (client, request) => {
  const topic = request.url.slice(request.url.lastIndexOf('/') + 1);
  if (!watchers.has(topic)) watchers.set(topic, new Set());
  watchers.get(topic).add(client);
  client.on('close', () => watchers.get(topic).delete(client));
  client.on('error', () => client.terminate());
});

net.createServer((producer) => {
  readline.createInterface({ input: producer }).on('line', (text) => {
    broadcast(JSON.parse(text).job_id, text);
    broadcast('jobs', text);
  });
}).listen(socket);
