// E2B's own JavaScript client, unmodified, against a server of ours. Prints one line of JSON per promise; test_e2b_js.py reads them.
// Where to go comes from E2B_API_URL, E2B_SANDBOX_URL and E2B_API_KEY, as in a user's program.

import { Sandbox } from '@e2b/code-interpreter'

const say = (name, value) => console.log(JSON.stringify({ name, value }))

const fails = async (work) => {
  try {
    await work()
    return null
  } catch (error) {
    return { name: error.name, message: String(error.message), exitCode: error.exitCode, stdout: error.stdout }
  }
}

const sandbox = await Sandbox.create({ timeoutMs: 120_000, metadata: { from: 'js' }, envs: { MINE: 'js' } })
try {
  await sandbox.runCode('x = 41')
  const lines = []
  const run = await sandbox.runCode("print('hi'); x + 1", { onStdout: (message) => lines.push(message.line) })
  say('run', { text: run.text, lines, error: run.error ?? null })
  say('error', (await sandbox.runCode('1/0')).error.name)
  const chart = await sandbox.runCode("import matplotlib.pyplot as plt\nplt.plot([1, 2], [3, 4], label='a')\nplt.show()")
  say('chart', { type: chart.results[0].chart.type, points: chart.results[0].chart.elements[0].points, png: chart.results[0].png.slice(0, 5) })

  const context = await sandbox.createCodeContext({ cwd: '/tmp' })
  say('context', (await sandbox.runCode('import os; os.getcwd(), "x" in globals()', { context })).text)
  say('contexts', (await sandbox.listCodeContexts()).length)
  await sandbox.removeCodeContext(context)

  await sandbox.files.write('/home/user/a.txt', 'hey')
  await sandbox.files.write([{ path: '/tmp/b.txt', data: 'b' }, { path: '/tmp/c.txt', data: 'c' }])
  say('read', [await sandbox.files.read('/home/user/a.txt'), await sandbox.files.read('/tmp/c.txt')])
  say('bytes', Array.from(await sandbox.files.read('/home/user/a.txt', { format: 'bytes' })))
  say('list', (await sandbox.files.list('/home/user')).map((entry) => [entry.name, entry.type, entry.size]))
  say('exists', [await sandbox.files.exists('/home/user/a.txt'), await sandbox.files.exists('/home/user/none')])
  say('made', [await sandbox.files.makeDir('/home/user/box'), await sandbox.files.makeDir('/home/user/box')])
  say('renamed', (await sandbox.files.rename('/home/user/a.txt', '/home/user/box/z.txt')).path)
  say('not found', (await fails(() => sandbox.files.read('/home/user/none'))).name)

  const seen = new Promise((resolve) => {
    sandbox.files.watchDir('/home/user/box', (event) => resolve([event.name, event.type])).then((handle) => {
      sandbox.files.write('/home/user/box/new.txt', 'n').then(async () => (await seen, handle.stop()))
    })
  })
  say('watched', await seen)
  await sandbox.files.remove('/home/user/box')

  say('command', (await sandbox.commands.run('echo ok; echo $MINE')).stdout)
  say('exit', await fails(() => sandbox.commands.run('echo before; exit 3')))
  const cat = await sandbox.commands.run('cat', { background: true, stdin: true })
  say('listed', (await sandbox.commands.list()).some((process) => process.pid === cat.pid))
  await sandbox.commands.sendStdin(cat.pid, 'given\n')
  await sandbox.commands.closeStdin(cat.pid)
  say('stdin', (await cat.wait()).stdout)
  const endless = await sandbox.commands.run('sleep 1000', { background: true })
  say('killed', [await endless.kill(), (await fails(() => endless.wait())).name])

  say('timeout', (await fails(() => sandbox.runCode('import time; time.sleep(1000)', { timeoutMs: 1000 }))).name)
  say('after', (await sandbox.runCode('x')).text)

  const page = await Sandbox.list({ query: { metadata: { from: 'js' } } }).nextItems()
  say('found', page.map((info) => info.sandboxId === sandbox.sandboxId))
  say('info', (await sandbox.getInfo()).metadata)
  await sandbox.setTimeout(60_000)
  const again = await Sandbox.connect(sandbox.sandboxId)
  say('connected', (await again.runCode('x')).text)
  say('running', await sandbox.isRunning())
} finally {
  say('ended', await sandbox.kill())
}
say('gone', await sandbox.isRunning())
