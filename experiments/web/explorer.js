(() => {
  'use strict'
  const at = (id) => document.getElementById(`explorer-${id}`)
  const { models } = JSON.parse(at('data').textContent)
  const NEGATIVE = [0, 114, 178], POSITIVE = [230, 159, 0], PURPLE = [168, 80, 138], FIRING = [0, 127, 95]
  const CELL = 26, FLUID = 20, MOST = 96

  function element(tag, name = '', ...inside) {
    const made = document.createElement(tag)
    if (name) made.className = name.replace(/\S+/g, 'explorer-$&')
    made.append(...inside)
    return made
  }

  function drawn(tag, attributes, ...inside) {
    const made = document.createElementNS(at('root').querySelector('svg').namespaceURI, tag)
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value)
    made.append(...inside)
    return made
  }

  const written = (value) => (Math.abs(value) === 0.5 ? '½' : `${Math.abs(value)}`).replace(/^/, value < 0 ? '−' : '')
  const mixed = (color, share) => `rgb(${color.map((c) => Math.round(255 + (c - 255) * share))})`
  const shade = (value, top, faded = 1) => mixed(value < 0 ? NEGATIVE : POSITIVE, faded * Math.sqrt(Math.min(1, Math.abs(value) / top)))
  const dark = (color) => color.match(/\d+/g).reduce((sum, part) => sum + Number(part), 0) < 380
  const largest = (rows) => Math.max(1e-9, ...rows.flat().map(Math.abs))

  // One step of one query, with the scale of its colours.
  function scaled(step) {
    const stream = step.blocks.flatMap((block) => [block.read, block.written]).filter(Boolean)
    return { ...step, top: largest(stream.map((row) => row.values)), held: largest(step.tokens.map((row) => row.values)) }
  }

  const wide = (count) => `${Math.min(count * 18, 760)}px`
  const named = (slot, entry) => (entry ? `${slot}[${entry}]` : slot)

  // Draws coordinates in one row, or in several rows if there are very many.
  function cells(values, fill, numbers) {
    const count = values.length, along = count > MOST ? 48 : count
    const lines = Math.ceil(count / along), width = count > FLUID ? 12 : CELL
    const height = count > FLUID ? Math.max(15, along / 3) : 22
    const svg = drawn('svg', { viewBox: `0 0 ${along * width} ${lines * height}`, role: 'img', 'aria-label': values.map(written).join(', ') })
    values.forEach((value, i) => {
      const x = (i % along) * width, y = Math.floor(i / along) * height, color = fill(value)
      svg.append(drawn('rect', { x, y, width, height, fill: color }))
      if (numbers && value) {
        svg.append(drawn('text', { x: x + width / 2, y: y + height / 2, fill: dark(color) ? '#fff' : '#1b1b1b' }, written(value)))
      }
    })
    svg.style.width = count > FLUID ? '100%' : `calc(var(--explorer-cell) * ${along})`
    if (count > FLUID) svg.style.maxWidth = wide(along)
    return svg
  }

  function card([slot, entry, size], values, state, word, fill, numbers) {
    const made = element('div', `card ${state}`, element('span', 'name', entry))
    const svg = cells(values, fill, numbers)
    const [, , width, height] = svg.getAttribute('viewBox').split(' ')
    if (state === 'c') svg.append(drawn('rect', { class: 'explorer-hatched', width, height }))
    if (state === 'n' && word) svg.append(drawn('rect', { class: 'explorer-frame', width, height }))
    made.append(svg)
    const fits = word && word.length * 8 > size * CELL ? word.split(' ×')[0] : word
    if (word !== null) made.append(element('span', 'word', fits))
    if (word !== null && size <= FLUID) made.lastChild.style.minWidth = svg.style.width
    made.classList.toggle('explorer-fluid', size > FLUID)
    made.title = word ? `${named(slot, entry)} = ${word}` : named(slot, entry)
    return made
  }

  // Draws cards side by side, grouped under the name of their slot.
  function strip(cards, values, paint) {
    const made = element('div', cards.some(([, entry]) => entry) ? 'strip' : 'strip plain')
    let start = 0, slot = null
    cards.forEach((one, i) => {
      if (one[0] !== slot) {
        made.append(element('div', 'group', element('span', 'slot', one[0]), element('div', 'cards')))
        made.lastChild.classList.toggle('explorer-fluid', one[2] > FLUID)
      }
      slot = one[0]
      made.lastChild.lastChild.append(paint(one, values.slice(start, start + one[2]), i))
      start += one[2]
    })
    return made
  }

  function residual(model, { values, words, states }, top) {
    const short = values.every((value) => written(value).length <= 3), any = words.some(Boolean)
    return strip(model.cards, values, (one, own, i) => {
      const faded = 'cu'.includes(states[i]) ? 0.5 : 1
      return card(one, own, states[i], any && one[2] <= FLUID ? words[i] : null, (value) => shade(value, top, faded), one[2] <= FLUID && short)
    })
  }

  function units(cards, { values }) {
    const top = largest([values]), few = values.length <= 40
    const fill = (value) => (value > 0 ? mixed(FIRING, few ? 1 : 0.25 + 0.75 * value / top) : 'rgb(255,255,255)')
    return strip(cards, values, (one, own) => card(one, own, 'h', null, fill, false))
  }

  function stage(kind, title, aside, ...inside) {
    const heading = element('h5', '', title)
    if (aside) heading.append(element('small', '', aside))
    return element('section', `stage ${kind}`, heading, ...inside)
  }

  function boxed(title, aside, ...inside) {
    const made = stage('branch', title, aside)
    const box = element('div', 'box', ...made.childNodes, ...inside)
    made.append(box)
    return made
  }

  function says(model, said, asked, where) {
    if (!said) return []
    const line = element('p', 'says', element('span', '', `linear probes of ${where}:`))
    said.forEach(([name, right], r) => {
      const item = element('span', r === asked ? 'asked' : '', `${model.relations[r]} → `)
      item.append(element('b', right ? 'yes' : 'no', `${name} ${right ? '✓' : '✗'}`))
      line.append(item)
    })
    return [line]
  }

  // Draws the embedding as a sum of parts, in the coordinates that have no names.
  function taken(model, parts, top) {
    const made = element('div', 'parts'), count = model.cards[0][2]
    made.style.setProperty('--explorer-strip', wide(count))
    parts.forEach(([label, values], i) => {
      const svg = drawn('svg', { viewBox: `0 0 ${count * 10} 12`, preserveAspectRatio: 'none', 'aria-hidden': true })
      values.slice(0, count).forEach((value, j) => svg.append(drawn('rect', { x: j * 10, y: 0, width: 10, height: 12, fill: shade(value, top) })))
      made.append(svg, element('span', '', `${i ? '+' : '='} ${label}`))
    })
    return made
  }

  function tokens(model, query, step, asked) {
    const read = step.tokens.map((_, q) => Math.max(...step.blocks.flatMap((block) => block.heads.map((head) => head[q]))))
    const made = stage('', 'Embeddings', 'of each token, before the first block')
    step.tokens.forEach((row, q) => {
      const unread = read[q] < 0.01 && q !== step.at
      const about = q === step.at ? ', the answer is predicted here' : unread ? ', no head attends to it here' : ''
      const line = element('p', '', element('b', '', query.tokens[q]), `token ${q + 1}${about}`)
      const token = element('div', `token ${unread ? 'unread' : ''}`, line, residual(model, row, step.held))
      if (q === 0 && step.parts) token.append(taken(model, step.parts, step.held), ...says(model, step.said?.embedding, asked, 'the embedding'))
      made.append(token)
    })
    return made
  }

  function attention(query, heads) {
    const head = element('tr', '', element('th'))
    heads[0].forEach((_, q) => {
      const cell = element('th', '', query.tokens[q])
      cell.scope = 'col'
      head.append(cell)
    })
    const body = element('tbody')
    heads.forEach((weights, h) => {
      const name = element('th', '', `head ${h + 1} reads`)
      name.scope = 'row'
      const line = element('tr', '', name)
      for (const weight of weights) {
        const cell = element('td', '', weight ? written(weight) : '')
        cell.style.background = mixed(PURPLE, weight * 0.95)
        cell.style.color = weight > 0.7 ? '#fff' : '#1b1b1b'
        line.append(cell)
      }
      body.append(line)
    })
    return element('div', 'scroll', element('table', 'heads', element('thead', '', head), body))
  }

  function fired({ count, names }) {
    const list = element('ul', 'fired')
    if (!count) list.append(element('li', 'quiet', names[0]))
    else list.append(...names.map((name) => element('li', '', name)))
    if (count > names.length) list.append(element('li', 'quiet', `… ${count - names.length} more`))
    return list
  }

  function logits(step, answers) {
    const values = step.logits.map(([, , value]) => value)
    const low = Math.min(0, ...values), span = Math.max(1e-9, Math.max(0, ...values) - low)
    const place = (value) => (value - low) / span * 72
    const made = element('div', 'logits')
    step.logits.forEach(([name, text, value], i) => {
      const right = name === step.right
      const label = element('span', i ? '' : right ? 'best' : 'best wrong', name)
      const bar = element('i'), number = element('em', '', `${text.replace('-', '−')}${right ? ' ✓' : ''}`)
      bar.style.left = `${place(Math.min(0, value))}%`
      bar.style.width = `${Math.abs(place(value) - place(0))}%`
      number.style.left = `${place(Math.max(0, value))}%`
      if (right) number.title = 'the correct answer'
      made.append(label, element('div', 'bar', bar, number))
    })
    const more = answers - values.length
    return more > 0 ? [made, element('p', 'note', `and ${more} more answers with smaller logits`)] : [made]
  }

  function journey(model, query, found, i, asked) {
    const step = scaled(found)
    const made = element('div', 'step')
    if (query.steps.length > 1) {
      made.append(element('h4', '', `Step ${i + 1} of ${query.steps.length}: the model emits ${step.logits[0][0]}`))
    }
    made.append(tokens(model, query, step, asked))
    const many = step.blocks.length > 1
    step.blocks.forEach((block, b) => {
      const where = many ? `, block ${b + 1}` : ''
      made.append(boxed(`Attention${where}`, `what ${query.tokens[step.at]} attends to${b ? ', in the output of the previous block' : ''}`, attention(query, block.heads)))
      made.append(stage('sum', `After attention${where}`, 'the residual stream where the answer is predicted', residual(model, block.read, step.top), ...says(model, step.said?.read, asked, 'this residual')))
      block.hidden.forEach((layer, l) => {
        const name = block.hidden.length > 1 ? `Hidden units, layer ${l + 1}${where}` : `Hidden units${where}`
        made.append(boxed(name, `${layer.count} of ${layer.values.length} fire`, units(model.hidden[b][l], layer), fired(layer)))
      })
      if (block.written) {
        made.append(stage('sum', `After the MLP${where}`, 'with the output of these units added', residual(model, block.written, step.top), ...says(model, step.said?.written, asked, 'this residual')))
      }
    })
    made.append(stage('', 'Logits', `margin ${step.margin}`, ...logits(step, model.answers)))
    return made
  }

  function answer(model, query) {
    const right = query.answer.at(-1) === query.truth
    const said = element('b', '', `${query.query} → ${query.answer.join(' → ')}`)
    const verdict = right ? `correct, by a margin of ${query.margin}` : `wrong: the answer is ${query.truth}`
    at('answer').replaceChildren(said, element('span', '', verdict))
    at('answer').classList.toggle('explorer-wrong', !right)
  }

  const options = (names) => names.map((name, i) => new Option(name, i))
  const checked = () => [...at('hops').querySelectorAll(':checked')].map((input) => Number(input.value))
  const state = () => ({ model: models[at('model').value], subject: Number(at('subject').value), path: checked() })
  const find = ({ model, subject, path }) => model.queries[path.reduce((n, r) => n * model.relations.length + r, subject)]

  function relations(model, path) {
    const words = ['First relation', 'Second relation', 'Third relation']
    at('hops').replaceChildren(...Array.from({ length: model.hops }, (_, hop) => {
      const choices = element('div', 'choices', ...model.relations.map((name, r) => {
        const input = element('input')
        Object.assign(input, { type: 'radio', name: `explorer-hop-${hop}`, value: r, checked: r === path[hop] })
        return element('label', '', input, name)
      }))
      return element('fieldset', '', element('legend', '', model.hops > 1 ? words[hop] : 'Relation'), choices)
    }))
  }

  function choose(index, subject, path) {
    const model = models[index]
    at('model').value = index
    at('subject').replaceChildren(...options(model.subjects))
    at('subject').value = subject
    relations(model, path)
    show()
  }

  function show() {
    const now = state(), { model, path } = now, query = find(now)
    at('about').textContent = model.about
    const probes = model.probes
    at('sizes').textContent = `${model.sizes}; ${model.accuracy}.` + (probes ? ` Where coordinates have no names, linear probes read them, one map per relation, fitted to other subjects than those shown. On subjects that they were not fitted to, probes of the embedding find ${Math.round(100 * probes[1])} % of the answers, and the sum of one linear image of each answer explains the embedding with R² = ${written(probes[0])}.` : '')
    answer(model, query)
    at('journey').classList.toggle('explorer-roomy', model.cards.reduce((sum, [, , size]) => sum + size, 0) <= 20)
    at('journey').replaceChildren(...query.steps.map((step, i) => journey(model, query, step, i, path[0])))
  }

  // #explorer:model=selector&query=s2+r1
  function follow() {
    if (!location.hash.startsWith('#explorer:')) return false
    const wanted = new URLSearchParams(location.hash.slice('#explorer:'.length))
    const index = models.findIndex((model) => model.name === wanted.get('model'))
    if (index < 0) return false
    const model = models[index], found = model.queries.findIndex((query) => query.query === wanted.get('query'))
    if (found < 0 && wanted.has('query')) return false
    const number = Math.max(0, found), R = model.relations.length
    const path = Array.from({ length: model.hops }, (_, hop) => Math.floor(number / R ** (model.hops - 1 - hop)) % R)
    choose(index, Math.floor(number / R ** model.hops), path)
    return true
  }

  // With a delay, because browsers limit how often a page may change its address.
  let soon = 0
  function remember() {
    clearTimeout(soon)
    soon = setTimeout(() => {
      const words = new URLSearchParams({ model: state().model.name, query: find(state()).query })
      history.replaceState(null, '', `#explorer:${words}`)
    }, 100)
  }

  at('model').append(...options(models.map((model) => model.title)))
  at('model').addEventListener('change', () => {
    const { subject, path } = state(), model = models[at('model').value]
    choose(at('model').value, Math.min(subject, model.subjects.length - 1), Array.from({ length: model.hops }, (_, hop) => path[hop] ?? 0))
    remember()
  })
  at('subject').addEventListener('change', () => { show(); remember() })
  at('hops').addEventListener('change', () => { show(); remember() })
  at('root').querySelector('form').addEventListener('submit', (event) => event.preventDefault())
  addEventListener('hashchange', () => { if (follow()) at('root').scrollIntoView() })
  if (follow()) at('root').scrollIntoView()
  else choose(0, Math.min(2, models[0].subjects.length - 1), [1])
})()
