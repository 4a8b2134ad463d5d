/* The search of the site runs in a worker, which browsers refuse to pages that are opened from a folder (file://).
   There, and only there, the worker's script runs in a hidden frame, with the same messages. */
(function () {
  if (location.protocol !== "file:") return
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.waiting = []
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.body.appendChild(frame)
      const inside = frame.contentWindow
      this.inside = inside
      // As with a worker, no answer arrives before the one who asked has done what it is at.
      inside.postMessage = data => setTimeout(() => this.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })))
      inside.importScripts = (...urls) => urls.reduce((before, one) => before.then(() => this.load(one)), Promise.resolve())
      this.load(url).then(() => {
        const waiting = this.waiting
        this.waiting = null
        waiting.forEach(data => this.postMessage(data))
      })
    }
    load(url) {
      return new Promise((done, failed) => {
        const script = this.inside.document.createElement("script")
        script.src = url
        script.onload = done
        script.onerror = failed
        this.inside.document.body.appendChild(script)
      })
    }
    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else setTimeout(() => this.inside.dispatchEvent(new MessageEvent("message", { data: structuredClone(data) })))
    }
    terminate() { this.inside.frameElement.remove() }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
})()
